"""The keys of a configuration. The variable and the flag of a key follow from its name."""

from dataclasses import dataclass

PREFIX = "KVFERRY_"


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that can be configured."""

    name: str
    """As in a file, with a dot after each section."""
    metavar: str
    """What stands for the value in the help."""
    help: str
    default: object = None
    """What holds if nobody sets it; None: nothing."""
    required: bool = False
    is_list: bool = False
    """Whether variable and flag take several values, with commas between them."""

    @property
    def flag(self) -> str:
        """For example ``--pool-bytes``."""
        return "--" + self.name.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        """For example ``KVFERRY_POOL_BYTES``."""
        return PREFIX + self.name.replace(".", "_").upper()

    def of_text(self, text: str) -> object:
        """The value that a variable or a flag stands for."""
        return [part.strip() for part in text.split(",")] if self.is_list else text
