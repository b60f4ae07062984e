"""The one family of errors a user sees: what was got, what was expected, what to do next.

Every command prints the message as one paragraph and exits with code 2; the service turns it into a problem+json
answer. Anything else that escapes is a fault of ours and keeps its traceback.
"""


class SurematchError(Exception):
    """Root of all errors meant for the user. The message names the file or value and the remedy."""


class DataError(SurematchError):
    """Rows that cannot be used: a missing column, an empty text, a class of one row, a wrong encoding."""


class NoLabelColumn(DataError):
    """A table without the column that was to hold its labels."""


class EncoderError(SurematchError):
    """An encoder that cannot be found, is damaged, or produced unusable vectors."""


class RuntimeMissing(EncoderError):
    """An encoder whose folder may be whole, and for which a package is not installed here."""


class WorkerError(EncoderError):
    """An encoding process died. What was encoded before is kept."""


class CollectionError(SurematchError):
    """A collection that is missing, damaged, or built by another encoder."""


class ReadOnly(CollectionError):
    """A write to a collection that is not open for writing, or whose folder cannot be written to."""


class WriterBusy(CollectionError):
    """Another process holds the collection's one writer's place."""


class DiskFull(CollectionError):
    """No room for a write, of which nothing remains. Writing works again as soon as there is room."""


class Displaced(CollectionError):
    """Another collection, or none, lies where the one that is open was opened."""


class Damaged(CollectionError):
    """Files of a collection that are not as they were written, and that nothing can stand in for."""


class NotFound(CollectionError):
    """Something asked for by its name that the collection does not have."""


class CalibrationError(SurematchError):
    """No honest calibration is possible with the queries given."""


class SettingsError(SurematchError):
    """A flag or a line of a configuration file that is wrong."""
