"""What a part of an attack needs to know: declared once, checked before anything is computed."""

from collections.abc import Mapping
from typing import Self

from gibench.errors import ThreatModelError
from gibench.types import ThreatModel


class Needs(dict[str, tuple[str, ...]]):
    """Threat-model flag -> the values with which the part works; flags that are not named do not matter."""

    def check(self, threat_model: ThreatModel, who: str) -> None:
        """Raise ThreatModelError, naming the field to set, unless the threat model grants everything."""
        for flag, accepted in self.items():
            value = getattr(threat_model, flag)
            if value not in accepted:
                wanted = " or ".join(repr(choice) for choice in accepted)
                raise ThreatModelError(f"{who} needs threat_model.{flag} to be {wanted}; it is {value!r}.")

    def also(self, other: Mapping[str, tuple[str, ...]]) -> Self:
        """Return the needs of two parts together: for a flag that both name, the values that satisfy both."""
        merged = {
            flag: tuple(
                value for value in self.get(flag, other.get(flag, ())) if value in other.get(flag, self.get(flag, ()))
            )
            for flag in {**self, **other}
        }
        return type(self)(merged)
