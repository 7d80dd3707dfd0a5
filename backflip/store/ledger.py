"""The rules of voting: who stands by which vote or thumb, as they come in one by one."""

from collections.abc import Iterable
from typing import final

from backflip.core.errors import DataError
from backflip.core.records import ThumbVote, Vote


@final
class VoteLedger:
    """A rater has one standing vote on a pair, and one more where the plan has them judge it again."""

    def __init__(self, log: Iterable[Vote]) -> None:
        self._log: dict[str, Vote] = {}
        self._standing: dict[tuple[str, str, int], str] = {}
        for vote in log:
            self._enter(vote)

    def admit(self, vote: Vote) -> bool:
        """Enter a vote; False when its key is known. Raises: DataError when it breaks a rule."""
        known = self._log.get(vote.key)
        if known is not None:
            if _judgement(known) != _judgement(vote):
                raise DataError(f"Vote key {vote.key!r} is taken by another vote.\nGive every vote a key of its own.")
            return False
        if (vote.choice == "retract") != (vote.retracts is not None):
            raise DataError(f"Vote {vote.key!r}: `retracts` goes with the choice 'retract', and only with it.")
        if vote.retracts is not None:
            self._check_retraction(vote, vote.retracts)
        elif (standing := self._standing.get(_place(vote))) is not None:
            raise DataError(
                f"Rater {vote.rater_id!r} has already voted on pair {vote.pair_id!r} (vote {standing!r}).\n"
                "Retract that vote before casting another."
            )
        self._enter(vote)
        return True

    def _check_retraction(self, vote: Vote, key: str) -> None:
        target = self._log.get(key)
        if target is None:
            raise DataError(f"Vote {vote.key!r} retracts {key!r}, which the store does not have.")
        if target.choice == "retract":
            raise DataError(f"Vote {vote.key!r} retracts a retraction.\nCast the vote again instead.")
        if target.rater_id != vote.rater_id:
            raise DataError(f"Vote {vote.key!r} retracts a vote of another rater.\nRaters undo their own votes only.")
        if (target.pair_id, target.repeat) != (vote.pair_id, vote.repeat):
            raise DataError(
                f"Vote {vote.key!r} names pair {vote.pair_id!r}, but retracts a vote on {target.pair_id!r}."
            )
        if self._standing.get(_place(vote)) != key:
            raise DataError(f"Vote {vote.key!r} retracts {key!r}, which is retracted already.")

    def _enter(self, vote: Vote) -> None:
        self._log[vote.key] = vote
        if vote.choice == "retract":
            self._standing.pop(_place(vote), None)
        else:
            self._standing[_place(vote)] = vote.key


@final
class ThumbLedger:
    """A rater has one standing thumb on an answer."""

    def __init__(self, log: Iterable[ThumbVote]) -> None:
        self._log: dict[str, ThumbVote] = {}
        self._standing: dict[tuple[str, str], str] = {}
        for thumb in log:
            self._enter(thumb)

    def admit(self, thumb: ThumbVote) -> bool:
        """Enter a thumb; False when its key is known. Raises: DataError when it breaks a rule."""
        known = self._log.get(thumb.key)
        if known is not None:
            if _opinion(known) != _opinion(thumb):
                raise DataError(f"Thumb key {thumb.key!r} is taken.\nGive every thumb a key of its own.")
            return False
        standing = self._standing.get((thumb.sample_id, thumb.rater_id))
        if thumb.retracts is None and standing is not None:
            raise DataError(
                f"Rater {thumb.rater_id!r} has already put a thumb under {thumb.sample_id!r} ({standing!r}).\n"
                "Retract that one before casting another."
            )
        if thumb.retracts is not None and standing != thumb.retracts:
            raise DataError(
                f"Thumb {thumb.key!r} retracts {thumb.retracts!r}, which is no standing thumb of this rater's there."
            )
        self._enter(thumb)
        return True

    def _enter(self, thumb: ThumbVote) -> None:
        self._log[thumb.key] = thumb
        place = (thumb.sample_id, thumb.rater_id)
        if thumb.retracts is None:
            self._standing[place] = thumb.key
        else:
            self._standing.pop(place, None)


def _place(vote: Vote) -> tuple[str, str, int]:
    return vote.pair_id, vote.rater_id, vote.repeat


def _judgement(vote: Vote) -> tuple[str | int | None, ...]:
    """What makes two votes the same vote; a request sent again may bear another time."""
    return vote.pair_id, vote.rater_id, vote.choice, vote.repeat, vote.retracts


def _opinion(thumb: ThumbVote) -> tuple[str | bool | None, ...]:
    return thumb.sample_id, thumb.rater_id, thumb.up, thumb.retracts
