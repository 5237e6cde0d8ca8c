"""Where records go while a cell is attacked by several processes, and how they come together."""

from collections.abc import Sequence

from gibench.records import RecordFile, RunFolder, finished, key
from gibench.runs.processes import Processes
from gibench.types import Record


class Journal:
    """The records of a run in the order of an unbroken run of one process, whoever computed them.

    One process alone appends to `records.jsonl`. Several append each to a share of their own, `records.rankN.jsonl`,
    flushed after each group; at the end of a cell they send its records to the first process, which appends them to
    `records.jsonl` in the order of the groups, and only then are the shares deleted. What a kill leaves in shares is
    brought into the first one's at the next start and counts as recorded; until the end of its cell it stays there,
    and what is missing joins it, even where one process continues alone. Between the two steps of each move a record
    is in two places, never in none, and it is written once, because `RecordFile.append` skips what is there.

    Args:
        folder: of the run.
        processes: all of them construct it together.
    """

    def __init__(self, folder: RunFolder, processes: Processes) -> None:
        self.folder = folder
        self.processes = processes
        self.torn = False
        if processes.is_first:
            self.share = folder.recover_shares()
            self.torn = folder.records.torn or self.share.torn
        processes.wait()
        if not processes.is_first:
            self.share = folder.share(processes.rank)

    def finished(self, scenario: str, attack: str, *, batch_size: int) -> set[str]:
        """The ids of the updates that are recorded; for the first process only."""
        return finished([*self.folder.records.records, *self.share.records], scenario, attack, batch_size=batch_size)

    def file_for(self, scenario: str, attack: str) -> RecordFile:
        """Where this process appends the records of a cell."""
        alone = self.processes.count == 1 and not self._of(self.share.records, scenario, attack)
        return self.folder.records if alone else self.share

    def merge(self, scenario: str, attack: str, order: Sequence[str]) -> None:
        """Bring the records of a cell into `records.jsonl`; every process calls it.

        Args:
            scenario: of the cell.
            attack: of the cell.
            order: of the updates in a run of one process.
        """
        mine = self._of(self.share.records, scenario, attack)
        found = [record for share in self.processes.collect(mine) for record in share]
        if self.processes.is_first and found:
            place = {update_id: number for number, update_id in enumerate(order)}
            found.sort(key=lambda record: (place.get(record.update_id, len(place)), record.update_id, record.position))
            self.folder.records.append(found)
        self.processes.wait()
        self.share.discard({key(record) for record in mine})

    @staticmethod
    def _of(records: Sequence[Record], scenario: str, attack: str) -> list[Record]:
        return [record for record in records if (record.scenario, record.attack) == (scenario, attack)]
