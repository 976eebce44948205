"""Tasks of the lm-evaluation-harness (``lm_eval``), put to a subject through the engine's chat endpoint.

Only task files with local data are run, and only those that let the model write: the engine gives no
log-likelihood of a prompt. The harness renders, asks, filters and scores; whether the candidate is good
enough is for the gate to say.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tokenmill.domain.codec import digest_of
from tokenmill.domain.errors import DataError, EngineError, MissingExtraError, TokenmillError
from tokenmill.domain.stations import EvaluateParams
from tokenmill.engine import environment
from tokenmill.engine.embedded import EmbeddedOptions, address_of, open_server
from tokenmill.line.answers import Judgement
from tokenmill.line.job import StationJob
from tokenmill.line.judging import Subject

ALIAS = "evaluated"
FILE_FORMATS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")  # loaders that read given files
MIN_CONTEXT = 512
CHARACTERS_PER_TOKEN = 2  # fewer than any text of ours needs, so that the context is never too small
TURN_TOKENS = 16  # what a chat template adds to a turn, generously
WHOLE = "a task file of lm-evaluation-harness: task, dataset_path, doc_to_text, doc_to_target, metric_list"
PACK_DATA = (
    "Give dataset_path one of the file formats and dataset_kwargs.data_files the files beside the task."
)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a task as one subject did on it. ``digest`` is of its text, prompt and target."""

    task: str
    id: int
    digest: str
    wanted: str
    said: str
    milli: int


class Harness:
    """The tasks of one evaluate station. Raises ``MissingExtraError`` and ``DataError``."""

    def __init__(self, job: StationJob, params: EvaluateParams) -> None:
        environment.prepare()  # the harness loads datasets, which reads then that it must stay offline
        if util.find_spec("lm_eval") is None:
            raise MissingExtraError(
                "the metric lm_eval needs lm-evaluation-harness, which is not installed",
                fix="pip install 'tokenmill[lm-eval]'",
            )
        self._job, self._params = job, params
        self._files = [job.factory_dir / name for name in params.lm_eval_tasks]
        self._tasks = [_task(path, job.work / "datasets") for path in self._files]
        names = [str(task.task_name) for task in self._tasks]
        if len(set(names)) < len(names):
            raise DataError(f"two lm-eval tasks have one name: {', '.join(names)}", expected="one name each")
        self._metrics = {
            name: _metric(task, params.lm_eval_metric, path)
            for name, task, path in zip(names, self._tasks, self._files, strict=True)
        }
        self._known: dict[tuple[str, str], tuple[Document, ...]] = {}

    def documents(self, subject: Subject) -> tuple[Document, ...]:
        """What ``subject`` did on every chosen document, by task and document id. Asked once per weights."""
        key = (subject.weights, subject.lora)
        if key not in self._known:
            self._known[key] = self._asked(subject)
        found = self._known[key]
        first = next(iter(self._known.values()))
        if [(d.task, d.id, d.digest) for d in found] != [(d.task, d.id, d.digest) for d in first]:
            raise DataError(
                "the lm-eval tasks do not give every model the same documents and prompts",
                where=", ".join(map(str, self._files)),
                expected="tasks whose functions draw nothing at random, so that answers can be paired",
            )
        return found

    def judgements(self, subject: Subject) -> list[Judgement]:
        return [Judgement(d.milli == 1000, True, d.said, milli=d.milli) for d in self.documents(subject)]

    def report(self, subject: Subject) -> dict[str, Any]:
        """Figures for the gate's bounds: the mean over all documents, and that of each task."""
        found = self.documents(subject)
        by_task = {name: [d.milli for d in found if d.task == name] for name in self._metrics}
        return {
            "lm_eval_milli": round(sum(d.milli for d in found) / len(found)),
            "lm_eval_documents": len(found),
            **{f"lm_eval_{name}_milli": round(sum(v) / len(v)) for name, v in by_task.items()},
        }

    def digests(self, subject: Subject) -> dict[str, str]:
        """What the tasks were, by digest: their files, the documents asked, and the harness itself."""
        asked = [(d.task, d.id, d.digest) for d in self.documents(subject)]
        return {
            "lm_eval": f"lm_eval {metadata.version('lm_eval')}",
            "lm_eval_tasks": digest_of([hashlib.sha256(p.read_bytes()).hexdigest() for p in self._files]),
            "lm_eval_documents": digest_of(asked),
        }

    def lines(self, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
        """One line per document: what was wanted, and what each subject said."""
        found = {subject.name: self.documents(subject) for subject in subjects}
        return [
            {
                "task": d.task,
                "doc_id": d.id,
                "digest": d.digest,
                "wanted": d.wanted,
                **{
                    name: {"said": docs[at].said, "score_milli": docs[at].milli}
                    for name, docs in found.items()
                },
            }
            for at, d in enumerate(next(iter(found.values())))
        ]

    def _asked(self, subject: Subject) -> tuple[Document, ...]:
        from lm_eval import simple_evaluate
        from lm_eval.models.openai_completions import LocalChatCompletion
        from lm_eval.tasks import TaskManager

        params = self._params
        model = LocalChatCompletion(
            base_url="http://127.0.0.1:0",
            model=ALIAS,
            max_gen_toks=params.max_tokens,
            num_concurrent=max(2, params.slots),  # with one it would go through the machine's HTTP proxy
            seed=params.seed,
            header={"content-type": "application/json"},  # else it sends OPENAI_API_KEY
        )
        model.generate_until = self._served(model, subject, model.generate_until)
        done: Any = _guarded(
            "lm-eval could not evaluate",
            lambda: simple_evaluate(
                model=model,
                tasks=list(self._tasks),
                task_manager=TaskManager(include_defaults=False),
                samples={str(task.task_name): self._chosen(task) for task in self._tasks},
                apply_chat_template=True,
                bootstrap_iters=0,
                random_seed=params.seed,
                numpy_random_seed=params.seed,
                torch_random_seed=params.seed,
                fewshot_random_seed=params.seed,
            ),
            self._files,
        )
        found = [
            _document(name, sample, self._metrics[name])
            for name, samples in done["samples"].items()
            for sample in _of_first_filter(samples)
        ]
        return tuple(sorted(found, key=lambda d: (d.task, d.id)))

    def _chosen(self, task: Any) -> list[int]:
        """At most ``max_items`` documents of a task, by seed."""
        ids = range(len(task.eval_docs))
        if not ids:
            raise DataError(f"the lm-eval task {task.task_name} has no document", expected="at least one")
        return sorted(random.Random(self._params.seed).sample(ids, min(len(ids), self._params.max_items)))

    def _served(
        self, model: Any, subject: Subject, ask: Callable[..., list[str]]
    ) -> Callable[..., list[str]]:
        """``ask``, with an engine that is open while it lasts and whose context holds the longest request."""
        job, params = self._job, self._params

        def generate(requests: Sequence[Any], **more: Any) -> list[str]:
            longest = max(
                _tokens(request.args[0], request.args[1], params.max_tokens) for request in requests
            )
            options = EmbeddedOptions(
                job.artifacts.path(subject.weights),
                ALIAS,
                job.artifacts.path(subject.lora) if subject.lora else None,
                slots=params.slots,
                context_tokens=max(MIN_CONTEXT, 1 << (longest - 1).bit_length()),
                threads=job.threads(params.threads),
            )
            server = open_server(options)
            try:
                model.base_url = f"{address_of(server)}/v1/chat/completions"
                job.report(0, len(requests), "documents", f"{subject.name}: lm-eval")
                return ask(requests, **more)
            finally:
                job.report(len(requests), len(requests), "documents", f"{subject.name}: lm-eval")
                del server

        return generate


def _task(path: Path, cache: Path) -> Any:
    """The task that a file describes, its data read. Raises ``DataError`` for one that cannot be run here."""
    if not path.is_file():
        raise DataError("there is no such lm-eval task file", where=str(path), expected=WHOLE)
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = _guarded("the lm-eval task file cannot be read", lambda: load_yaml(path), [path])
    if not isinstance(config.get("task"), str) or "class" in config or "group" in config:
        raise DataError(
            "the file describes no single lm-eval task",
            where=str(path),
            expected=WHOLE,
            fix="Name the task's own file; of a group, the file of each task.",
        )
    kind = config.get("output_type", "generate_until")
    if kind != "generate_until":
        raise DataError(
            f"the lm-eval task has output_type {kind}, for which the engine would have to give the"
            " log-likelihoods of a prompt, and it does not",
            where=str(path),
            expected="output_type: generate_until",
            fix="Let the model write the answer (or its letter), and compare it with exact_match.",
        )
    if not callable(config.get("custom_dataset")):
        config["dataset_path"], config["dataset_kwargs"] = _local_data(config, path)
        config["dataset_kwargs"]["cache_dir"] = str(cache)
    return _guarded("the lm-eval task cannot be loaded", lambda: ConfigurableTask(config=config), [path])


def _local_data(config: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """``dataset_path`` and ``dataset_kwargs`` with paths from the task's folder, all of them there."""
    source, more = str(config.get("dataset_path") or ""), dict(config.get("dataset_kwargs") or {})
    folder = path.parent / source
    if source and source not in FILE_FORMATS and folder.is_dir():
        return str(folder), more
    if source not in FILE_FORMATS or not more.get("data_files"):
        raise DataError(
            f"the lm-eval task takes its data from {source or 'nowhere'!r}, which is not on this machine;"
            " a station does not fetch any from the internet",
            where=str(path),
            expected=f"dataset_path: a folder beside the task, or one of {', '.join(FILE_FORMATS)}",
            fix=PACK_DATA,
        )

    def located(name: Any) -> Any:
        if isinstance(name, Mapping):
            return {split: located(each) for split, each in name.items()}
        if isinstance(name, list | tuple):
            return [located(each) for each in name]
        if "://" in str(name):
            raise DataError(
                f"the lm-eval task would fetch {name}", where=str(path), expected="local files", fix=PACK_DATA
            )
        if not any(path.parent.glob(str(name))) and not (path.parent / str(name)).is_file():
            raise DataError(
                f"the data of the lm-eval task is not there: {path.parent / str(name)}",
                where=str(path),
                expected="data_files that are there, relative to the task file",
            )
        return str(path.parent / str(name))

    return source, more | {"data_files": located(more["data_files"])}


def _metric(task: Any, wanted: str, path: Path) -> str:
    """The metric to go by. Raises ``DataError`` for one that the task lacks or of which less is better."""
    higher = dict(task.higher_is_better())
    name = wanted or next(iter(higher), "")
    if not higher.get(name):
        raise DataError(
            f"the lm-eval task has no metric {name!r} of which more is better",
            where=str(path),
            expected=f"one of {', '.join(n for n, up in higher.items() if up) or 'its metric_list'}",
            fix="Correct lm_eval_metric, or the task's metric_list.",
        )
    return name


def _of_first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A task with several filters has each document several times; its first filter counts."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _document(task: str, sample: Mapping[str, Any], metric: str) -> Document:
    value = sample.get(metric)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"the metric {metric} of the lm-eval task {task} is not a number for each document",
            expected="one that is, such as exact_match, so that answers can be paired",
            fix="Choose another with lm_eval_metric.",
        )
    digest = digest_of([sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]])
    said = sample["filtered_resps"][0]
    return Document(
        task, int(sample["doc_id"]), digest, str(sample["target"]), str(said), round(1000 * value)
    )


def _tokens(prompt: Any, settings: Mapping[str, Any], usual: int) -> int:
    """At most how many tokens one request takes, with its answer."""
    text = str(getattr(prompt, "prompt", prompt))
    answer = settings.get("max_gen_toks") or settings.get("max_tokens") or usual
    return len(text.encode()) // CHARACTERS_PER_TOKEN + TURN_TOKENS * (1 + text.count('"role"')) + int(answer)


def _guarded(what: str, call: Callable[[], Any], files: Sequence[Path]) -> Any:
    """``call()``; what the harness, its libraries or a task's functions raise becomes one error of ours."""
    import aiohttp

    where = ", ".join(map(str, files))
    try:
        return call()
    except TokenmillError:
        raise
    except aiohttp.ClientError as error:
        raise EngineError(f"{what}: the engine failed: {error}", where=where) from error
    except Exception as error:
        raise DataError(
            f"{what}: {type(error).__name__}: {error}"[:600], where=where, expected=WHOLE
        ) from error
