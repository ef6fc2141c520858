"""Tomocube TCF: each encoding, each trap other readers fell into."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_acquisition import edit, load, ri_volume, tcf_file, volumes

from wbcd.acquisition import ReadDefaults, identify, read
from wbcd.acquisition.sidecar import experiment_medium, parse_config, vendor_config
from wbcd.acquisition.tcf import parse_version, sample_of_title, unscaled_ri
from wbcd.errors import BadField, CorruptContent, Forbidden, Incomplete, MissingField, NotARegularFile, TooLarge
from wbcd.records import SourceFormat


def set_attribute(node: str, name: str, value):
    def change(file):
        file[node].attrs[name] = value

    return change


def drop_attribute(node: str, name: str):
    return lambda file: file[node].attrs.pop(name)


# --- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"version": "1.2"},
        {"version": "1.3"},
        {"version": "1.5.2"},
        {"version": "1.10.0"},
        {"version": "1.6.1", "tile_shape": (8, 16, 16), "overlap": 0},
        {"version": "1.6.1", "tile_shape": (8, 16, 16), "overlap": 5},
        {"version": "2.0", "tile_shape": (8, 16, 16), "overlap": 30},
        {"version": "1.6.1", "tile_shape": (8, 16, 16), "overlap": 3, "tile_type": "uint8"},
    ],
)
def test_ri_comes_back_in_every_encoding(tmp_path, options):
    truth = ri_volume()
    ticket, (tomogram,) = load(tcf_file(tmp_path / "a.TCF", [truth], **options))
    tolerance = 5.01e-4 if options.get("tile_type") == "uint8" else 1e-6
    np.testing.assert_allclose(tomogram.ri, truth, atol=tolerance)
    assert tomogram.ri.dtype == np.float32
    assert tomogram.voxel_um == (0.2, 0.1, 0.1)
    assert (tomogram.medium_ri, tomogram.wavelength_um, tomogram.objective_na) == (1.337, 0.532, 1.2)
    assert tomogram.fill is None
    assert (ticket.format, ticket.time_points, ticket.pixel_size_um) == (SourceFormat.TCF, 1, 0.1)
    assert ticket.acquired_at == "2024-05-06T07:08:09.123000"


def test_version_1_10_is_after_1_3():
    assert parse_version("1.10.0", "x") > parse_version("1.3", "x")
    assert parse_version(" 1.6.1b", "x") == (1, 6, 1)
    with pytest.raises(BadField, match="'new'"):
        parse_version("new", "x")


def test_ri_attributes_in_either_scale():
    assert unscaled_ri(13370.0) == pytest.approx(1.337)
    assert unscaled_ri(1.337) == 1.337


def test_eight_bit_offset_in_either_scale(tmp_path):
    truth = ri_volume()
    path = tcf_file(tmp_path / "a.TCF", [truth], version="1.6", tile_type="uint8")
    with h5py.File(path) as file:
        low = float(file["Data/3D/000000"].attrs["RIMin"][0])
    edit(path, set_attribute("Data/3D/000000", "RIMin", np.array([low * 1e4])))
    np.testing.assert_allclose(volumes(path)[0].ri, truth, atol=5.01e-4)


def test_every_time_point_one_at_a_time(tmp_path):
    truth = [ri_volume(seed=seed) for seed in range(3)]
    ticket, series = read(identify(tcf_file(tmp_path / "a.TCF", truth)))
    assert (ticket.time_points, series.count) == (3, 3)
    for index, tomogram in enumerate(series):
        assert tomogram.time_index == index
        np.testing.assert_allclose(tomogram.ri, truth[index], atol=1e-6)


def test_scalar_attributes_are_as_good_as_arrays(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", [ri_volume()], version="1.6", tile_type="uint16", overlap=2)

    def scalars(file):
        def visit(_name, node):
            for name, value in list(node.attrs.items()):
                if isinstance(value, np.ndarray):
                    node.attrs[name] = value[0]
                elif isinstance(value, bytes):
                    node.attrs[name] = value.decode()

        visit("/", file)
        file.visititems(visit)

    np.testing.assert_allclose(volumes(edit(path, scalars))[0].ri, ri_volume(), atol=1e-6)


def test_overlapping_tiles_are_not_added_up(tmp_path):
    flat = np.full((6, 40, 40), 1.36, np.float32)
    path = tcf_file(tmp_path / "a.TCF", [flat], version="1.6", tile_shape=(6, 10, 10), overlap=8)
    np.testing.assert_allclose(volumes(path)[0].ri, 1.36, atol=1e-6)


def test_coarse_tiles_are_left_out_and_padded_tiles_cut(tmp_path):
    truth = ri_volume((8, 32, 32))
    path = tcf_file(tmp_path / "a.TCF", [truth], version="1.6", tile_shape=(8, 32, 32))

    def change(file):
        group = file["Data/3D/000000"]
        padded = np.pad(group["TILE_00"][...], ((0, 2), (0, 3), (0, 4)), constant_values=60000)
        attributes = dict(group["TILE_00"].attrs)
        del group["TILE_00"]
        group["TILE_00"] = padded
        group["TILE_01"] = np.full((4, 16, 16), 50000, np.uint16)
        for name in ("TILE_00", "TILE_01"):
            group[name].attrs.update(attributes)
        group["TILE_01"].attrs["SamplingStep"] = np.array([2])
        group.attrs["NumberOfTiles"] = np.array([2])

    np.testing.assert_allclose(volumes(edit(path, change))[0].ri, truth, atol=1e-6)


def test_more_than_a_hundred_tiles_keep_their_order(tmp_path):
    truth = ri_volume((4, 44, 44))
    path = tcf_file(tmp_path / "a.TCF", [truth], version="1.6", tile_shape=(4, 4, 4), overlap=1)
    np.testing.assert_allclose(volumes(path)[0].ri, truth, atol=1e-6)


# --- fill and non-physical values ----------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.6"])
def test_stitching_fill_becomes_medium_and_is_marked(tmp_path, version):
    truth = ri_volume()
    truth[:, :10, :15] = 0
    path = tcf_file(tmp_path / "a.TCF", [truth], version=version, medium_ri=1.34)
    (tomogram,) = volumes(path)
    np.testing.assert_array_equal(tomogram.fill, truth == 0)
    assert np.unique(tomogram.ri[tomogram.fill]) == np.float32(1.34)


def test_uncovered_by_any_tile_is_fill(tmp_path):
    truth = ri_volume((8, 40, 40))
    path = tcf_file(tmp_path / "a.TCF", [truth], version="1.6", tile_shape=(8, 20, 20))

    def change(file):
        file["Data/3D/000000/TILE_03"].attrs["SamplingStep"] = np.array([4])

    (tomogram,) = volumes(edit(path, change))
    assert tomogram.fill[:, 20:, 20:].all()
    assert tomogram.fill.sum() == 8 * 400


def test_single_non_finite_voxels_stay_for_the_cells_verdict(tmp_path):
    truth = ri_volume()
    truth[3, 4, 5], truth[3, 4, 6], truth[3, 4, 7] = np.nan, -6.9e37, np.inf
    (tomogram,) = volumes(tcf_file(tmp_path / "a.TCF", [truth], version="1.2"))
    np.testing.assert_array_equal(tomogram.ri, truth)


def test_many_non_finite_voxels_are_damage(tmp_path):
    truth = ri_volume()
    truth[:, :5] = np.nan
    with pytest.raises(CorruptContent, match=r"not finite in 12\.5% .* at most 1%"):
        volumes(tcf_file(tmp_path / "a.TCF", [truth], version="1.2"))


def test_values_on_a_wrong_scale_name_range_and_limit(tmp_path):
    with pytest.raises(BadField, match=r"spans 13\d+ to 14\d+ with 100\.0% .* 1 to 2"):
        volumes(tcf_file(tmp_path / "a.TCF", [ri_volume() * 1e4], version="1.2"))


@pytest.mark.parametrize("where", [slice(0, 1), slice(11, 12), slice(0, 12)])
def test_planes_of_zeros_were_never_written(tmp_path, where):
    truth = ri_volume()
    truth[where] = 0
    with pytest.raises(CorruptContent, match=f"nothing but zeros in plane z = {where.start}"):
        volumes(tcf_file(tmp_path / "a.TCF", [truth]))


def test_mostly_fill(tmp_path):
    truth = ri_volume()
    truth[:, 1:] = 0
    with pytest.raises(CorruptContent, match="at most 90%"):
        volumes(tcf_file(tmp_path / "a.TCF", [truth]))


# --- header --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "name"),
    [("/", "FormatVersion")]
    + [("Data/3D", name) for name in ("DataCount", "SizeX", "SizeY", "SizeZ", "ResolutionX", "ResolutionZ")],
)
def test_missing_header_attribute(tmp_path, node, name):
    path = edit(tcf_file(tmp_path / "a.TCF"), drop_attribute(node, name))
    with pytest.raises(MissingField, match=rf"a\.TCF: `.*{name}` is absent"):
        load(path)


@pytest.mark.parametrize("name", ["ScalarType", "NumberOfTiles", "DataSizeX", "RIMin"])
def test_missing_tile_group_attribute(tmp_path, name):
    path = tcf_file(tmp_path / "a.TCF", version="1.6", tile_type="uint8")
    with pytest.raises(MissingField, match=name):
        load(edit(path, drop_attribute("Data/3D/000000", name)))


@pytest.mark.parametrize("name", ["SamplingStep", "DataIndexOffsetPointX", "DataIndexLastPointZ"])
def test_missing_tile_attribute(tmp_path, name):
    path = tcf_file(tmp_path / "a.TCF", version="1.6")
    with pytest.raises(MissingField, match=name):
        load(edit(path, drop_attribute("Data/3D/000000/TILE_00", name)))


@pytest.mark.parametrize(
    ("node", "name", "value", "words"),
    [
        ("Data/3D", "SizeX", 45, r"\(12, 40, 44\).*\(12, 40, 45\)"),
        ("Data/3D", "ResolutionX", 100.0, r"100 um; allowed is 0\.01 to 5 um"),
        ("Data/3D", "ResolutionZ", np.nan, "nan"),
        ("Data/3D", "DataCount", 0, "1 to 100000"),
        ("Info/Device", "RI", 2.5, r"2\.5; allowed is 1 to 1\.8"),
        ("Info/Device", "NA", 12.0, r"12; allowed is 0\.05 to 1\.7"),
        ("Info/Device", "Wavelength", 5.0, r"5 um; allowed is 0\.3 to 1\.2 um"),
        ("/", "FormatVersion", "latest", "latest"),
    ],
)
def test_bad_header_value(tmp_path, node, name, value, words):
    with pytest.raises(BadField, match=words):
        load(edit(tcf_file(tmp_path / "a.TCF"), set_attribute(node, name, value)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("DataIndexOffsetPointX", 44), ("DataIndexLastPointX", 44), ("DataIndexOffsetPointY", -1), ("DataIndexLastPointZ", 99)],
)
def test_tile_outside_the_volume(tmp_path, name, value):
    path = tcf_file(tmp_path / "a.TCF", version="1.6")
    with pytest.raises(BadField, match=name):
        load(edit(path, set_attribute("Data/3D/000000/TILE_00", name, value)))


def test_tile_smaller_than_its_extent(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", version="1.6", tile_shape=(12, 20, 44))
    with pytest.raises(BadField, match=r"\(12, 20, 44\); its data index points demand \(12, 40, 44\)"):
        load(edit(path, set_attribute("Data/3D/000000/TILE_00", "DataIndexLastPointY", 39)))


def test_integers_before_1_3_have_no_defined_scale(tmp_path):
    path = edit(tcf_file(tmp_path / "a.TCF"), set_attribute("/", "FormatVersion", np.bytes_("1.2")))
    with pytest.raises(BadField, match=r"uint16 in a file of version 1\.2"):
        load(path)


def test_wrong_type(tmp_path):
    def change(file):
        del file["Data/3D/000000"]
        file["Data/3D/000000"] = np.ones((12, 40, 44), np.int32)

    with pytest.raises(BadField, match="int32; allowed is float32 or uint16"):
        load(edit(tcf_file(tmp_path / "a.TCF"), change))


def test_fewer_time_points_than_announced_may_still_be_coming(tmp_path):
    path = edit(tcf_file(tmp_path / "a.TCF"), set_attribute("Data/3D", "DataCount", 3))
    with pytest.raises(Incomplete, match="announces 3 volumes; 1 are there"):
        load(path)


def test_fewer_tiles_than_announced(tmp_path):
    path = edit(tcf_file(tmp_path / "a.TCF", version="1.6"), set_attribute("Data/3D/000000", "NumberOfTiles", 2))
    with pytest.raises(Incomplete, match="announces 2 tiles; 1 are there"):
        load(path)


def test_without_3d_data(tmp_path):
    def change(file):
        del file["Data/3D"]

    with pytest.raises(MissingField, match="`Data/3D` is absent"):
        load(edit(tcf_file(tmp_path / "a.TCF"), change))


def test_later_time_point_of_another_shape_is_found_at_once(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", [ri_volume(), ri_volume()])

    def change(file):
        del file["Data/3D/000001"]
        file["Data/3D/000001"] = np.ones((12, 40, 43), np.uint16)

    with pytest.raises(BadField, match="000001"):
        read(identify(edit(path, change)))


@pytest.mark.parametrize("place", ["Data", "Data/3D", "Data/3D/000000", "Data/3D/000000/TILE_00", "Info/Device"])
def test_links_along_the_path_are_refused(tmp_path, place):
    tcf_file(tmp_path / "other.h5", version="1.6")
    path = tcf_file(tmp_path / "a.TCF", version="1.6")
    parent, name = place.rpartition("/")[::2]

    def change(file):
        del file[place]
        file[parent or "/"][name] = h5py.ExternalLink(str(tmp_path / "other.h5"), place)

    with pytest.raises(Forbidden, match="external link"):
        load(edit(path, change))


def test_external_storage_of_a_tile_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"\x01\x34" * 12 * 40 * 44)
    path = tcf_file(tmp_path / "a.TCF", version="1.6")

    def change(file):
        group = file["Data/3D/000000"]
        attributes = dict(group["TILE_00"].attrs)
        del group["TILE_00"]
        size = 12 * 40 * 44 * 2
        group.create_dataset("TILE_00", (12, 40, 44), np.uint16, external=[(str(tmp_path / "secret"), 0, size)]).attrs.update(
            attributes
        )

    with pytest.raises(Forbidden, match="external storage"):
        load(edit(path, change))


def test_declared_size_over_the_limit(tmp_path):
    def change(file):
        del file["Data/3D/000000"]
        file["Data/3D"].create_dataset("000000", (60000, 60000, 60000), np.uint16, chunks=(1, 1000, 1000))

    with pytest.raises(TooLarge, match="limit"):
        load(edit(tcf_file(tmp_path / "a.TCF"), change))


def test_tiled_size_over_the_limit_is_refused_before_memory_is_taken(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", version="1.6")

    def change(file):
        for axis in "XYZ":
            file["Data/3D"].attrs[f"Size{axis}"] = np.array([60000])
            file["Data/3D/000000"].attrs[f"DataSize{axis}"] = np.array([60000])

    with pytest.raises(TooLarge, match="of 864000000000000 bytes; the limit is"):
        load(edit(path, change))


# --- who and with what ---------------------------------------------------------------------------


def test_sample_of_a_vendor_title():
    assert sample_of_title("donor 3-012") == "donor 3"
    assert sample_of_title("Default-001") is None
    assert sample_of_title("") is None


def test_sample_id_is_the_title_s_else_the_configured_one(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", title="PBMC-003")
    assert load(path)[0].sample_id == "PBMC"
    assert load(path, defaults=ReadDefaults(sample_id="donor 7"))[0].sample_id == "PBMC"
    unnamed = tcf_file(tmp_path / "b.TCF", title="Default-003")
    assert load(unnamed)[0].sample_id == "unassigned"
    assert load(unnamed, defaults=ReadDefaults(sample_id="donor 7"))[0].sample_id == "donor 7"


def test_medium_falls_back_to_the_default(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", device=False)
    ticket, (tomogram,) = load(path, defaults=ReadDefaults(medium_ri=1.342))
    assert (tomogram.medium_ri, ticket.medium_ri) == (1.342, 1.342)
    assert (tomogram.wavelength_um, tomogram.objective_na) == (None, None)


def test_wavelength_in_nanometres_is_understood(tmp_path):
    path = edit(tcf_file(tmp_path / "a.TCF"), set_attribute("Info/Device", "Wavelength", np.array([532.0])))
    assert volumes(path)[0].wavelength_um == pytest.approx(0.532)


def test_htx_objective_na_comes_from_the_embedded_config_only(tmp_path):
    path = tcf_file(tmp_path / "a.TCF", objective_na=0.68)

    def embed(file):
        file.attrs["DeviceModelType"] = np.bytes_("HT-X1")
        raw = np.frombuffer(b"M,40.0\nNA,0.95\nNA_CDS,0.68\nn_m,1.339\n", np.uint8)
        file.create_group("Info/MetaData/RawData")["Config"] = raw

    (tomogram,) = volumes(edit(path, embed))
    assert tomogram.objective_na == 0.95
    assert tomogram.medium_ri == 1.337  # the TCF's own word comes first


HTX_CONFIG = b"""[JobInfo]
Title=donor 7
User_ID=tc

[AcquisitionSetting]
Z_Step_Micrometer=0.8
Wavelength_Nanometer=450
NA=0.3

; written by the instrument
[DeviceInfo]
Pixel_Size_Micrometer=5.480000
Magnification=40
Objective_NA=0.950000
Condenser_NA=0.540000
Medium_RI=1.342000
Device_Serial=XP58002
"""
EXPERIMENT = b'{"experimentTitle": "a", "medium": {"mediumName": "DMEM", "mediumRI": 1.344}, "sampleType": "Cell"}'


@pytest.mark.parametrize("model", ["HT-X1", None])
@pytest.mark.parametrize("kind", ["bytes", "fixed", "variable", "beside"])
def test_htx_config_has_sections_and_the_objectives_na(tmp_path, model, kind):
    """`Info/Device NA` is the condenser's, 0.54; also where the file does not name its model."""
    path = tcf_file(tmp_path / "s" / "s.TCF", objective_na=0.54)

    def embed(file):
        del file["Info/Device"].attrs["RI"]
        del file["Info/Device"].attrs["Wavelength"]
        if model:
            file.attrs["DeviceModelType"] = np.bytes_(model)
        raw = {"bytes": np.frombuffer(HTX_CONFIG, np.uint8), "fixed": np.bytes_(HTX_CONFIG), "variable": HTX_CONFIG.decode()}
        if kind == "beside":
            (path.parent / "config.dat").write_bytes(HTX_CONFIG)
        else:
            file.create_group("Info/MetaData/RawData")["Config"] = raw[kind]

    (tomogram,) = volumes(edit(path, embed))
    assert (tomogram.objective_na, tomogram.medium_ri, tomogram.wavelength_um) == (0.95, 1.342, 0.45)


@pytest.mark.parametrize("kind", ["embedded", "beside"])
@pytest.mark.parametrize("config", [b"[DeviceInfo]\nObjective_NA=0.95\n", b""])
def test_the_medium_of_an_experiment_is_taken_where_nothing_else_names_it(tmp_path, kind, config):
    path = tcf_file(tmp_path / "s" / "s.TCF", device=False)

    def embed(file):
        if kind == "beside":
            (path.parent / "config.dat").write_bytes(config)
            (path.parent / ".experiment").write_bytes(EXPERIMENT)
        else:
            group = file.create_group("Info/MetaData/RawData")
            group["Config"] = np.frombuffer(config or b"\0", np.uint8)
            group["Experiment"] = np.frombuffer(EXPERIMENT, np.uint8)

    _, (tomogram,) = load(edit(path, embed), defaults=ReadDefaults(medium_ri=1.4))
    assert tomogram.medium_ri == 1.344


@pytest.mark.parametrize(
    ("raw", "medium"),
    [
        (b'{"Medium": {"RI": 1.34}}', 1.34),
        (b'\xef\xbb\xbf{"medium": {"mediumRI": 1.34}}\0', 1.34),
        (b'{"medium": {"mediumRI": 0}}', None),
        (b'{"medium": {"mediumRI": "1.34"}}', None),
        (b'{"medium": {"mediumRI": true}}', None),
        (b'{"medium": 1.34}', None),
        (b"[]", None),
        (b"{", None),
        (b"[" * 100_000, None),
        (b"\xff\xfe{", None),
    ],
)
def test_an_experiment_says_the_medium_or_nothing(raw, medium):
    assert experiment_medium(raw, ".experiment") == medium


def test_an_experiment_outside_physics_is_refused():
    with pytest.raises(BadField, match=r"\.experiment: `medium` is 13\.4"):
        experiment_medium(b'{"medium": {"mediumRI": 13.4}}', ".experiment")


def test_sections_are_told_from_lines():
    found = vendor_config(b"[DeviceInfo]\r\nNA=0.95\r\nCondenser_NA=0.54\r\nMedium_RI=0\r\n", "config.dat")
    assert (found.objective_na, found.condenser_na, found.medium_ri) == (0.95, 0.54, None)
    with pytest.raises(BadField, match=r"`objectivena` is 3"):
        vendor_config(b"[DeviceInfo]\nObjective_NA=3\n", "config.dat")


def test_htx_without_config_has_no_objective_na(tmp_path):
    path = edit(tcf_file(tmp_path / "a.TCF", objective_na=0.68), set_attribute("/", "DeviceModelType", np.bytes_("HT-X1")))
    assert volumes(path)[0].objective_na is None


def test_missing_comma_is_forgiven():
    entries = parse_config("NA,1.2\nImmersion_RI1.337000\nn_m,1.337\r\n\nFLCH0 without anything\nSW Version,3.3.3a\n")
    assert entries == {"NA": "1.2", "Immersion_RI": "1.337000", "n_m": "1.337", "SW Version": "3.3.3a"}


def test_config_outside_physics_is_refused_and_unset_is_none():
    assert vendor_config(b"n_m,0.000000\nNA,", "config.dat").medium_ri is None
    with pytest.raises(BadField, match=r"`n_m` is 3; allowed is 1 to 1\.8"):
        vendor_config(b"n_m,3.0", "config.dat")


@pytest.mark.parametrize(
    ("session", "medium"), [("20220131.150824.759.Default-001", 1.337), ("20210407.120552.997.HZ_tests-002", 1.56)]
)
def test_real_session_folder_completes_a_silent_tcf(tmp_path, shared_data, session, medium):
    folder = tmp_path / session
    shutil.copytree(shared_data / "tomocube_sidecars" / session, folder, copy_function=shutil.copyfile)
    path = tcf_file(folder / f"{session}.TCF", device=False)
    _, (tomogram,) = load(path, defaults=ReadDefaults(medium_ri=1.4))
    assert (tomogram.medium_ri, tomogram.wavelength_um, tomogram.objective_na) == (medium, 0.532, 1.2)
    assert parse_config((folder / "config.dat").read_text())["Immersion_RI"] == "1.337000"
    elsewhere = Path(shutil.copyfile(path, folder / "other.TCF"))  # not the session's own file: its config says nothing of it
    assert volumes(elsewhere)[0].medium_ri == 1.337


def test_config_behind_a_symlink_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("n_m,1.5\n")
    path = tcf_file(tmp_path / "s" / "s.TCF", device=False)
    (tmp_path / "s" / "config.dat").symlink_to(tmp_path / "secret")
    with pytest.raises(NotARegularFile, match="symbolic link"):
        load(path)
