"""Every error wbcd raises, as one tree.

    WbcdError
    |-- ConfigurationError            the site settings cannot be used; exit status 78
    |   |-- UnknownKey                a key that no section knows (the nearest known one is named)
    |   `-- BadValue                  a known key with a value outside its limits
    |-- InputError                    one file cannot be used; it is set aside, the daemon goes on
    |   |-- NotReadable               it cannot be opened: permission, vanished, I/O error
    |   |-- NotARegularFile           a directory, FIFO, device or symbolic link where a file belongs
    |   |-- UnknownFormat             the bytes are of no format that wbcd reads
    |   |-- Truncated                 the bytes end before the format says
    |   |-- Incomplete                the writer has not said that it is done (tried again later)
    |   |-- MissingField              a required attribute or data set is absent
    |   |-- BadField                  wrong type, shape, unit or value
    |   |-- CorruptContent            a checksum, a zero frame or a non-finite value says damage
    |   |-- Forbidden                 links, external storage, unknown filters: refused unread
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
    |   |-- NoRight                   the database refuses this role; told, and tried again after a grant
    |   |-- SchemaMismatch            migrations are missing or from a newer wbcd
    |   `-- NoSpace                   the disk is full; intake pauses
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


# --- input -------------------------------------------------------------------------------------


class InputError(WbcdError):
    code = "input"
    action = "Export the acquisition again from the instrument."


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


class MissingField(InputError):
    code = "input.missing_field"


class BadField(InputError):
    code = "input.bad_field"


class CorruptContent(InputError):
    code = "input.corrupt"
    action = "Copy the file again from the instrument; check the disk if it happens often."


class Forbidden(InputError):
    code = "input.forbidden"
    action = "Repack the file without links, external storage or unusual filters (h5repack)."


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


class NoRight(StoreError):
    code = "store.no_right"


class SchemaMismatch(StoreError):
    code = "store.schema"
    action = "Run `wbcd db upgrade`."


class NoSpace(StoreError):
    code = "store.no_space"
    action = "Free space on the named disk; the daemon resumes by itself."


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
