"""Log lines about states that last: each is written once per change, not at every look."""

from __future__ import annotations

from collections.abc import Mapping

Subject = tuple[str, ...]


class Notices:
    """What was said last of each subject. To be used from one event loop."""

    def __init__(self) -> None:
        self._said: dict[Subject, str] = {}

    def is_new(self, subject: Subject, message: str) -> bool:
        """Whether `message` is not what was said of `subject` last; from now on it is."""
        new = self._said.get(subject) != message
        self._said[subject] = message
        return new

    def over(self, subject: Subject) -> None:
        """The state has ended: when it comes back, that is new."""
        self._said.pop(subject, None)

    def news(self, kind: str, messages: Mapping[str, str]) -> dict[str, str]:
        """Of all that is to be said of a kind now, by name, what is new. What is not among it is over."""
        for subject in [one for one in self._said if one[0] == kind and one[1] not in messages]:
            del self._said[subject]
        return {name: text for name, text in messages.items() if self.is_new((kind, name), text)}
