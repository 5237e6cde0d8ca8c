"""Named errors: each message is one line that says what is wrong and what to do about it.

The command line prints the line and exits with status 1; `--debug` shows the traceback. Library users catch
`GibenchError` for all of them or one class for one cause.
"""


class GibenchError(Exception):
    """Base of every error that gibench raises on purpose."""


class ConfigurationError(GibenchError):
    """A configuration names something that does not exist or does not fit together."""


class ThreatModelError(GibenchError):
    """An attack needs knowledge that the threat model does not grant."""


class RefusalError(GibenchError):
    """An attack cannot serve this victim at all; a suite records its rows as refused, with the floor's score."""


class DataNotFoundError(GibenchError):
    """A data set is neither on disk nor downloadable."""


class WeightsError(GibenchError):
    """Weights are missing, of another architecture, or not what their fingerprint says."""


class ImageRangeError(GibenchError):
    """Images lie outside [0, 1], for example because they were normalized already."""


class ShapeError(GibenchError):
    """A tensor does not have the shape that its docstring states."""


class NonFiniteError(GibenchError):
    """A tensor from outside holds NaN or infinity."""


class SecondDerivativeError(GibenchError):
    """A victim contains an operation that has no second derivative."""


class VictimError(GibenchError):
    """A victim's forward is not a fixed function: it draws random numbers or changes its buffers."""


class BackendError(GibenchError):
    """A back end of the engine cannot serve a victim or a likelihood."""


class RecordError(GibenchError):
    """Records on disk are damaged or belong to another run."""


class StorageError(GibenchError):
    """The run folder cannot be written."""
