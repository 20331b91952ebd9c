"""The generation of a job's dataset: `run` generates the missing images."""

import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from synthgen.config.job import Job
from synthgen.config.loading import replace_values
from synthgen.dataset.finalise import begin_dataset
from synthgen.dataset.former_defaults import find_former_values, list_unknown_hashes
from synthgen.dataset.info import (
    FIRST_IMAGE,
    ChangedJobError,
    DatasetInfo,
    has_shard,
    read_info,
    refuse_changed,
    refuse_foreign,
)
from synthgen.dataset.marker import Marker, scan_markers
from synthgen.dataset.shard import StagedShard
from synthgen.dataset.versions import (
    DISTRIBUTION,
    NETWORK_PACKAGES,
    PACKAGES,
    PIXEL_PACKAGES,
    describe_version_changes,
    read_versions,
)
from synthgen.engine.cluster import find_cluster_address, refuse_unreachable
from synthgen.engine.driver import RunResult, Work, WorkState, drive
from synthgen.engine.local_pool import LocalPool
from synthgen.engine.pool import FailedShard, Pool, StoppedError
from synthgen.engine.ray_pool import RayPool
from synthgen.engine.run_log import collect_facts, log_to_output
from synthgen.engine.termination import Notice
from synthgen.engine.worker import Progress, is_disk_full
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.location import open_store

log = logging.getLogger(__name__)

Show = Callable[[Progress, str], object]
"""Called with each progress, and with the path of the first finished image (empty if none)."""
FAILURES = "failures.jsonl"
MAX_FAILED_SHARDS = 100  # limit of one run; if so many fail, the shards are not the cause


def run(
    job: Job,
    address: str | None = None,
    overwrite: bool = False,
    report: Callable[[int, int], Show] | None = None,
) -> RunResult:
    """Generate the dataset of a job, or its missing images.

    Args:
        address: the address of a running Ray cluster.
        overwrite: remove the dataset that is in the output folder first, even of another job.
        report: called once with (all images, existing images); the function that it returns is
            called with every progress, see `Show`.

    Raises:
        ChangedJobError: the output contains the dataset of another job, or was generated with
            other versions of packages that pixels depend on.
        LockedError: another run works on the output.
        InputError: no Ray cluster answers at the address.
        StoppedError: the disk is full, no worker starts, or a worker has other versions of these
            packages. All committed shards stay.

    Examples:
        >>> changes = ["pipeline=paste", "images=2", "workers=0", "output.path=out/pasted"]
        >>> result = run(load_job("100dogs", changes))
        >>> result.counts["boxes"]
        200
    """
    store = open_store(job.output.path)
    info = build_dataset_info(job)
    refuse_foreign(store)
    notes: list[str] = []
    if not overwrite:
        old = read_info(store)
        if old is not None and has_shard(store):
            job, info, notes = restore_former_defaults(job, info, old)
        refuse_changed(store, info)
    refuse_gone_cluster(job, store, address)
    try:
        return drive(Generation(job, store, info, notes, address, overwrite, report))
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise make_full_disk_error(store, error) from error


class Generation(Work):
    """The generation of a job's dataset.

    Args:
        notes: lines to log if any image is generated; `restore_former_defaults` returns them.
        address: the address of a running Ray cluster.
        overwrite: remove the dataset that is in the output folder first, even of another job.
        report: called once with (all images, existing images); the function that it returns is
            called with every progress, see `Show`.

    Attributes:
        failed_shards: shards that failed at every attempt.
        show: what `report` returned.
        hardware: the processor or card of the first shard; empty if it is not known.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        info: DatasetInfo,
        notes: Sequence[str] = (),
        address: str | None = None,
        overwrite: bool = False,
        report: Callable[[int, int], Show] | None = None,
    ) -> None:
        super().__init__(store, info, overwrite)
        self.job = job
        self.notes = notes
        self.address = address
        self.report = report
        self.notice = Notice()
        self.failed_shards: list[FailedShard] = []
        self.existing_images = 0
        self.show: Show | None = None
        self.has_first_image = False
        self.hardware = ""

    @contextmanager
    def open(self) -> Iterator[None]:
        with self.notice, log_to_output(self.store):
            yield

    def plan(self) -> list[int]:
        missing = find_missing_shards(self.job, self.store, self.claim())
        missing_images = sum(self.job.images_in_shard(number) for number in missing)
        self.existing_images = self.job.images - missing_images
        if missing and self.job.numerics == "strict":
            self.hardware = read_hardware(self.store)
        return missing

    def begin(self, shards: list[int]) -> None:
        if shards:
            for note in self.notes:
                log.warning("%s: %s", self.store, note)
        begin_dataset(self.store, self.info, self.job.to_dict())
        figures = collect_facts(
            job=self.job.name,
            images=self.job.images,
            missing_shards=len(shards),
            versions=read_versions(),
        )
        log.info("run started", extra=figures)

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        if self.notice.received:
            return
        if self.report is not None:
            self.show = self.report(self.job.images, self.existing_images)
        pool = None
        try:
            pool = open_pool(self.job, self.store, self.address, self.show_progress)
            self.notice.listen()
            self.notice.finish = pool.finish
            if self.notice.received:
                pool.finish()
            yield from self.take(pool, shards)
        except SystemExit:  # while Ray starts, it raises this for a SIGTERM
            self.notice.received = True
            raise KeyboardInterrupt from None
        finally:
            self.notice.limit_time()
            if pool is not None:
                pool.close()

    def take(self, pool: Pool, shards: Iterable[int]) -> Iterator[StagedShard]:
        """Yield the shards that a pool stages, and record the shards that failed."""
        for event in pool.run(shards):
            if isinstance(event, Progress):
                self.show_progress(event)
            elif isinstance(event, FailedShard):
                self._record_failure(event)
                if len(self.failed_shards) == MAX_FAILED_SHARDS:
                    pool.finish()
            else:
                difference = describe_version_difference(event.marker, self.job)
                if difference:
                    raise StoppedError(
                        f"a worker has other package versions than this driver: {difference}. "
                        "Install the same versions on all nodes"
                    )
                self._refuse_other_hardware(event.marker)
                yield event
                log.info("shard committed", extra=collect_shard_facts(event))

    def _refuse_other_hardware(self, marker: Marker) -> None:
        """Raise StoppedError if the job is strict and a shard comes from another kind of device."""
        hardware = str(marker.numerics.get("hardware", ""))
        self.hardware = self.hardware or hardware
        if self.job.numerics == "strict" and hardware != self.hardware:
            raise StoppedError(
                f"numerics: strict: a worker runs on {hardware}, but this dataset was begun on "
                f"{self.hardware}; use only machines of that kind, or give numerics=device"
            )

    def show_progress(self, progress: Progress) -> None:
        """Show a progress; the first finished image is written beside the shards and named."""
        path = ""
        if progress.first_image is not None and not self.has_first_image:
            self.has_first_image = True
            name = FIRST_IMAGE[self.job.output.image_format]
            self.store.write(name, progress.first_image)
            path = self.store.path(name)
        if self.show is not None:
            self.show(progress, path)

    def _record_failure(self, shard: FailedShard) -> None:
        self.failed_shards.append(shard)
        lines = [json.dumps(asdict(failed)) + "\n" for failed in self.failed_shards]
        self.store.write(FAILURES, "".join(lines))

    def finalise(self, state: WorkState) -> dict[str, Any]:
        if not (self.failed_shards or state.interrupted or state.stopped):
            self.store.delete(FAILURES)
        return super().finalise(state)

    def end(self, state: WorkState, seconds: float) -> RunResult:
        if isinstance(state.stopped, OSError):
            raise make_full_disk_error(self.store, state.stopped)
        result = super().end(state, seconds)
        complete = state.counts.get("complete")
        interrupted = state.interrupted or (self.notice.received and not complete)
        result = replace(
            result,
            interrupted=interrupted,
            terminated=interrupted and self.notice.received,
            failed=self.failed_shards,
        )
        log.info("run interrupted" if interrupted else "run ended", extra=collect_run_facts(result))
        return result


def open_pool(
    job: Job,
    store: Store,
    address: str | None = None,
    watch: Callable[[Progress], object] | None = None,
) -> Pool:
    """Return a pool in this process if the job has `workers: 0`, otherwise a pool on Ray.

    Args:
        watch: called with the progress of a batch that a pool in this process generates.
    """
    if job.workers == 0:
        return LocalPool(job, store, watch)
    return RayPool(job, store, address)


def build_dataset_info(job: Job) -> DatasetInfo:
    """Return the content of dataset.json for a job."""
    return DatasetInfo(
        job.name,
        job.images,
        job.fingerprint(),
        job.ids(),
        job.output.image_format,
        job.pipeline.licence(),
    )


def restore_former_defaults(
    job: Job, info: DatasetInfo, old: DatasetInfo
) -> tuple[Job, DatasetInfo, list[str]]:
    """Return the job with the defaults of the version that began its dataset.

    Args:
        info: the result of `build_dataset_info` for the job.
        old: the content of the existing dataset.json.

    Returns:
        The job, its `DatasetInfo`, and the lines that tell the user what was restored or assumed.

    Raises:
        ConfigError: the job is not valid with the defaults of that version.
    """
    new = json.loads(json.dumps(info.fingerprint))
    values = find_former_values(old.fingerprint, new, job.user_keys)
    notes = []
    for key, value in values.items():
        today = f"today's default is {new[key]!r}"
        notes.append(f"{key} is {value!r}, as when this dataset was begun; {today}")
    hashes = list_unknown_hashes(old.fingerprint, new)
    if hashes:
        names = ", ".join(hashes)
        notes.append(
            f"{names}: not recorded when this dataset was begun; "
            "the files are assumed to be the same"
        )
    if values:
        job = replace_values(job, values, "dataset.json")
        info = replace(info, fingerprint=job.fingerprint())
    return job, info, notes


def refuse_gone_cluster(job: Job, store: Store, address: str | None) -> None:
    """Raise InputError if shards are missing and the job's Ray cluster does not answer.

    `run` calls this function before anything is written.
    """
    cluster = find_cluster_address(address)
    if job.workers == 0 or cluster is None:
        return
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return
    try:
        refuse_unreachable(cluster)
    except InputError:
        if find_missing_shards(job, store):
            raise


def find_missing_shards(
    job: Job, store: Store, shard_files: dict[int, dict[str, int]] | None = None
) -> list[int]:
    """Return the numbers of the shards to generate, ascending.

    These are the shards that do not exist, and those that do not have as many images as the job
    needs in them, such as the last shard of a dataset that is extended.

    Args:
        shard_files: the result of `list_shard_files`; None: the files are listed here.

    Raises:
        ChangedJobError: shards are missing, and those that exist were generated with other versions
            of packages that pixels depend on.
    """
    existing = set()
    difference = ""  # compares only the versions that pixels depend on
    harmless_difference = ""  # compares all versions
    has_current_shard = False  # a shard was generated with the installed versions
    for number, marker in scan_markers(store, shard_files):
        if number >= job.shards or marker.count != job.images_in_shard(number):
            continue
        existing.add(number)
        difference = difference or describe_version_difference(marker, job)
        changes = describe_version_changes(
            marker.numerics.get("versions"), read_versions(), (DISTRIBUTION, *PACKAGES)
        )
        harmless_difference = harmless_difference or changes
        has_current_shard = has_current_shard or not changes
    missing = [number for number in range(job.shards) if number not in existing]
    if missing and difference:
        raise ChangedJobError(
            f"{store} was generated with other package versions: {difference}. "
            "Install those versions, or give another output.path"
        )
    # This warning is logged once: after this run, there is a shard of the installed versions.
    if missing and harmless_difference and not has_current_shard:
        log.warning(
            "%s was started with other package versions, which no pixel depends on: %s",
            store,
            harmless_difference,
        )
    return missing


def read_hardware(store: Store) -> str:
    """Return the processor or card of the first shard that records it; empty if none does."""
    for _, marker in scan_markers(store):
        if marker.numerics.get("hardware"):
            return str(marker.numerics["hardware"])
    return ""


def describe_version_difference(marker: Marker, job: Job) -> str:
    """Describe how the versions that pixels depend on differ from those of a shard.

    The versions of the installed packages are compared with those that generated the shard.
    The versions of Ray and synthgen are ignored. If no network generates or verifies, the versions
    of torch, diffusers and transformers are ignored too. If another version of synthgen generates
    different pixels, a key of the fingerprint has another value.

    Returns:
        The differences; empty if there are none, or if the shard's versions are not known.
    """
    packages: tuple[str, ...] = PIXEL_PACKAGES
    if job.pipeline.uses_torch or job.verify is not None:
        packages = (*PIXEL_PACKAGES, *NETWORK_PACKAGES)
    return describe_version_changes(marker.numerics.get("versions"), read_versions(), packages)


def make_full_disk_error(store: Store, error: OSError) -> StoppedError:
    """Return the error for a full disk of the output."""
    return StoppedError(
        f"{store}: {os.strerror(error.errno or 0)}: make room, or give another output.path"
    )


def collect_run_facts(result: RunResult) -> dict[str, Any]:
    """Return the facts about a run that the log records when it ends."""
    return collect_facts(
        made=result.made,
        seconds=round(result.seconds, 3),
        failed=len(result.failed),
        **result.counts,
    )


def collect_shard_facts(shard: StagedShard) -> dict[str, Any]:
    """Return the facts about a committed shard that the log records."""
    marker = shard.marker
    return collect_facts(
        shard=shard.number,
        images=marker.count,
        seconds=marker.seconds,
        attempts=marker.attempts,
        bytes=marker.bytes,
        device=marker.numerics.get("device"),
        chunk=marker.numerics.get("chunk"),
    )
