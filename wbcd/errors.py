"""Every error wbcd raises, as one tree.

    WbcdError
    |-- ConfigurationError            the site settings cannot be used; exit status 78
    |   |-- UnknownKey                a key that no section knows (the nearest known one is named)
    |   |-- BadValue                  a known key with a value outside its limits
    |   |-- AlreadyRunning            another daemon writes into the same output folder
    |   `-- WouldReplace              a file that is there and was not to be written over; exit status 73
    |-- InputError                    one file cannot be used; it is set aside, the daemon goes on
    |   |-- NotReadable               it cannot be opened: permission, vanished, I/O error
    |   |-- NotARegularFile           a directory, FIFO, device or symbolic link where a file belongs
    |   |-- UnknownFormat             the bytes are of no format that wbcd reads
    |   |-- Truncated                 the bytes end before the format says
    |   |-- Incomplete                the writer has not said that it is done (tried again later)
    |   |   `-- MissingCompanion      a file that belongs to it, notes or a background, is not there yet
    |   |-- SameAcquisition           the instrument's own id is that of an acquisition that is counted already
    |   |-- MissingField              a required attribute or data set is absent
    |   |-- BadField                  wrong type, shape, unit or value
    |   |-- CorruptContent            a checksum, a zero frame or a non-finite value says damage
    |   |-- Forbidden                 links, external storage, unknown filters: refused unread
    |   |-- OwnTomogram               wbcd wrote it itself: its cell is counted with the acquisition that it came from
    |   |-- TooLarge                  declares more bytes than the limit
    |   |-- ReaderDied                the isolated reader crashed, hung or ran out of its limits
    |   `-- Poison                    the daemon died each time that it was begun
    |-- ReconstructionError           the numbers cannot be turned into a tomogram; set aside
    |   `-- NoObject                  nothing in the field of view departs from the medium
    |-- ModelError                    the model bundle cannot be used
    |   |-- BundleInvalid             missing part, wrong digest, wrong shape or classes
    |   `-- UnknownModel              no bundle of that name
    |-- DeviceError                   the accelerator failed
    |   |-- OutOfDeviceMemory         a batch does not fit; it is halved
    |   `-- DeviceLost                nothing more can be computed in this process; exit status 74
    |-- StoreError                    the database or the output folder cannot take a result
    |   |-- DatabaseUnavailable       no answer; tried again, nothing is lost
    |   |   `-- DatabaseReplaced      the file that was open is gone, or another lies in its place; opened anew
    |   |-- SchemaMismatch            migrations are missing or from a newer wbcd
    |   |-- NotPermitted              the user or the login may not do this; exit status 77
    |   |   `-- NoRight               the database refuses this role; told, and tried again after a grant
    |   |-- NotStored                 no such sample or cell; exit status 65
    |   |-- UnknownClass              a class that no model has, or none can have; exit status 65
    |   |-- NoSpace                   the disk is full; intake pauses
    |   `-- VolumeGone                a kept volume was removed before its row was stored; it is made again
    |-- Unforeseen                    an exception that wbcd has no name for, met on one item; set aside
    `-- StageFailed                   a stage broke for a reason that is not the item's

An error carries a stable ``code`` (stored, counted, documented), a message that names what was found,
where, and against which limit, and an ``action``: what the reader of the message can do.
A quality rejection is a value (:class:`wbcd.records.Rejected`), never an exception.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class WbcdError(Exception):
    """Base of all errors of wbcd."""

    code: ClassVar[str] = "error"
    action: ClassVar[str] = "Report this with the log line that shows it."

    def __init__(self, message: str, *, action: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = action if action is not None else type(self).action

    def sentence(self) -> str:
        """Message and action as one text for a person."""
        return f"{self.message} {self.advice}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross a process boundary (the isolated reader); the keyword must survive it.
        return (_rebuild, (type(self), self.message, self.advice))


def _rebuild(kind: type[WbcdError], message: str, advice: str) -> WbcdError:
    return kind(message, action=advice)


# --- configuration -----------------------------------------------------------------------------


class ConfigurationError(WbcdError):
    code = "configuration"
    action = "Correct the configuration file or the environment variable and start again."


class UnknownKey(ConfigurationError):
    code = "configuration.unknown_key"


class BadValue(ConfigurationError):
    code = "configuration.bad_value"


class AlreadyRunning(ConfigurationError):
    code = "configuration.already_running"
    action = "Let that one work, or stop it first; a second daemon needs an output folder and a database of its own."


class WouldReplace(ConfigurationError):
    code = "configuration.would_replace"
    action = "Name another file, or say --force."


# --- input -------------------------------------------------------------------------------------


class InputError(WbcdError):
    code = "input"
    action = "Compare the file with docs/reference/formats.md."


class NotReadable(InputError):
    code = "input.not_readable"
    action = "Check the file's permissions and the share it lies on."


class NotARegularFile(InputError):
    code = "input.not_a_regular_file"
    action = "Move it out of the watch folder."


class UnknownFormat(InputError):
    code = "input.unknown_format"
    action = "Only the formats in docs/reference/formats.md are read; move other files elsewhere."


class Truncated(InputError):
    code = "input.truncated"
    action = "Copy the file again from the instrument; the original may be whole."


class Incomplete(InputError):
    code = "input.incomplete"
    action = "Nothing to do if the instrument is still writing; else copy the file again."


class MissingCompanion(Incomplete):
    """``companion``: plain name of the file that is waited for, where one name is known."""

    code = "input.companion_missing"
    action = "Copy it beside the file; the file is taken up again then."

    def __init__(self, message: str, *, companion: str = "", action: str | None = None) -> None:
        super().__init__(message, action=action)
        self.companion = companion

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_missing, (self.message, self.companion, self.advice))


def _rebuild_missing(message: str, companion: str, advice: str) -> MissingCompanion:
    return MissingCompanion(message, companion=companion, action=advice)


class SameAcquisition(InputError):
    code = "input.same_acquisition"
    action = 'Nothing to do; to count both, set [watch] same_acquisition = "count".'


class MissingField(InputError):
    code = "input.missing_field"
    action = "Write it with the program that makes the file (docs/reference/formats.md)."


class BadField(InputError):
    code = "input.bad_field"
    action = "Correct it where the file is made (docs/reference/formats.md)."


class CorruptContent(InputError):
    code = "input.corrupt"
    action = "Copy the file again from the instrument; check the disk if it happens often."


class Forbidden(InputError):
    code = "input.forbidden"
    action = "Repack the file without links, external storage or unusual filters (h5repack)."


class OwnTomogram(InputError):
    code = "input.own_tomogram"
    action = "Nothing to do; give --accept-own-tomograms if it should be counted as an acquisition of its own."


class TooLarge(InputError):
    code = "input.too_large"
    action = "Raise [limits] max_logical_bytes if the file is trusted."


class ReaderDied(InputError):
    code = "input.reader_died"
    action = "The file is probably hostile or damaged; keep it apart and look at it by hand."


class Poison(InputError):
    code = "input.poison"
    action = "Keep the file apart and report it: the log before each restart shows where it ended."


# --- reconstruction ----------------------------------------------------------------------------


class ReconstructionError(WbcdError):
    code = "reconstruction"
    action = "Check the optics fields of the file against the instrument."


class NoObject(ReconstructionError):
    code = "reconstruction.no_object"
    action = "Nothing to do: the field of view is empty."


# --- model -------------------------------------------------------------------------------------


class ModelError(WbcdError):
    code = "model"
    action = "Name another bundle with [classification] model, or train one with wbcd train."


class BundleInvalid(ModelError):
    code = "model.bundle_invalid"


class UnknownModel(ModelError):
    code = "model.unknown"


# --- device ------------------------------------------------------------------------------------


class DeviceError(WbcdError):
    code = "device"
    action = 'Check nvidia-smi; set [classification] device = "cpu" to go on without.'


class OutOfDeviceMemory(DeviceError):
    code = "device.out_of_memory"


class DeviceLost(DeviceError):
    code = "device.lost"
    action = "The service is restarted by systemd; check the driver if it happens again."


# --- store -------------------------------------------------------------------------------------


class StoreError(WbcdError):
    code = "store"
    action = "Check the database URL, the server and the disk."


class DatabaseUnavailable(StoreError):
    code = "store.unavailable"


class DatabaseReplaced(DatabaseUnavailable):
    code = "store.replaced"
    action = "Nothing to do: what is there now is opened, and the folder is looked through again."


class NotPermitted(StoreError):
    code = "store.not_permitted"
    action = "Log in as the user or the role that may."


class NoRight(NotPermitted):
    code = "store.no_right"


class SchemaMismatch(StoreError):
    code = "store.schema"
    action = "Run `wbcd db upgrade`."


class NotStored(StoreError):
    code = "store.not_stored"
    action = "`wbcd status` and `wbcd counts` show what is stored."


class UnknownClass(StoreError):
    code = "store.unknown_class"
    action = "Name a class of the model, or say --new-class."


class NoSpace(StoreError):
    code = "store.no_space"
    action = "Free space on the named disk; the daemon resumes by itself."


class VolumeGone(StoreError):
    code = "store.volume_gone"
    action = "Nothing to do: the file is processed again. If it happens often, find what removes files from the output folder."


def no_room(error: OSError) -> bool:
    """True when a write failed because there is no room for it: a full disk, a quota, a limit on the length of a file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def not_written(what: object, error: OSError, *, action: str | None = None) -> StoreError:
    """The error for a file that could not be written, by its path or its name: NoSpace where there was no room for it."""
    kind = NoSpace if no_room(error) else StoreError
    return kind(f"{what} cannot be written: {error.strerror or error}.", action=action)


class Unforeseen(WbcdError):
    code = "unforeseen"
    action = "Report it with the traceback in the log; the file is kept where it is."


class StageFailed(WbcdError):
    code = "stage_failed"
    action = "See the log above this line; the service restarts and takes unfinished work up again."
