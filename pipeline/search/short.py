"""The short training by which a search judges a candidate, and its record, so that the same is never trained twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from models.language import canonical_hash
from models.space import Candidate, Hyper
from models.spec import ModelSpec
from pipeline.config import Augment, BuildConfig
from pipeline.files import read_record, write_record
from pipeline.search.limits import limits_of
from pipeline.show.live import bar
from pipeline.training.checkpoint import is_pretrained
from pipeline.training.inputs import Arrays, Rows, bf16_pays
from pipeline.training.loop import Fit, Recipe, fit
from pipeline.training.progress import Epoch


@dataclass(frozen=True)
class Trainer:
    """How candidates are trained. arrays_for: images as a network takes them; begin: it with the weights that training
    begins with; training: all else that a candidate's F1 depends on; space: its hash; folder: of the records."""

    config: BuildConfig
    classes: int
    arrays_for: Callable[[ModelSpec], Arrays]
    begin: Callable[[ModelSpec, int], nn.Module]
    training: dict[str, Any]
    space: str
    folder: Path

    def key(self, candidate: Candidate) -> str:
        """Of one training: graph, input size, hyper-parameters, data, epochs and subset."""
        return canonical_hash(
            [candidate.spec.hash, candidate.spec.input_size, candidate.hyper.as_dict(), self.training]
        )

    def known(self, key: str) -> tuple[float, ...] | None:
        """F1 by epoch, where the same was trained before."""
        record = read_record(self.folder / f"{key}.json")
        return tuple(e["f1_macro"] or 0.0 for e in record["fit"]["history"]) if record else None

    def train(self, candidate: Candidate, name: str, on_epoch: Callable[[Epoch], None], params: dict[str, Any]) -> Fit:
        """The record holds `params` too, by which another study may draw it, and the limits of this one. Raises
        OutOfMemory, and what on_epoch raises."""
        search = self.config.search
        result = self.fit(candidate, search.epochs, search.subset, self.config.seed, name, on_epoch)
        self._write(self.key(candidate), params, result.record(), result.best.f1_macro)
        return result

    def keep(self, key: str, params: dict[str, Any], f1_by_epoch: Sequence[float]) -> None:
        """A record of what was trained on another machine, where there is none."""
        if self.known(key) is None:
            self._write(key, params, {"history": [{"f1_macro": f1} for f1 in f1_by_epoch]}, max(f1_by_epoch))

    def _write(self, key: str, params: dict[str, Any], record: dict[str, Any], f1_macro: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"space": self.space, "training": self.training, "params": params, "limits": limits_of(self.config)}
        write_record(self.folder / f"{key}.json", {"f1_macro": f1_macro, "fit": record, **about})

    def repeated(self, candidate: Candidate, seed: int, name: str) -> float:
        """Macro F1 of the same training with another seed; trained once."""
        return self._once(candidate, self.config.search.epochs, self.config.search.subset, seed, name)

    def at_length(self, candidate: Candidate, epochs: int, name: str) -> float:
        """Macro F1 after so many epochs on all of train/; trained once."""
        return self._once(candidate, epochs, 1.0, self.config.seed, name)

    def _once(self, candidate: Candidate, epochs: int, subset: float, seed: int, name: str) -> float:
        path = self.folder / "again" / f"{self.key(candidate)}-{epochs}-{subset:g}-{seed}.json"
        record = read_record(path)
        if record is None:
            record = {"f1_macro": self.fit(candidate, epochs, subset, seed, name).best.f1_macro}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)
        found: float = record["f1_macro"]
        return found

    def fit(
        self,
        candidate: Candidate,
        epochs: int,
        subset: float,
        seed: int,
        name: str,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> Fit:
        spec, hyper = candidate.spec, candidate.hyper
        learnt = is_pretrained(spec, self.config.student.weights)
        recipe = Recipe(
            epochs,
            hyper.optimizer,
            hyper.learning_rate,
            hyper.batch,
            Augment(n_select=hyper.n_select),
            balance=self.config.data.balance,
            pretrained=learnt,
            fit_classifier=learnt,
            ema=spec.network is not None,
            reduced=bf16_pays(large=False),
        )
        arrays = part_of(self.arrays_for(spec), subset, self.config.seed)
        with bar(name, "images") as on_step:
            return fit(self.begin(spec, seed), arrays, recipe, seed, self.classes, on_step=on_step, on_epoch=on_epoch)


def candidate_of(trial: dict[str, Any]) -> Candidate:
    """Of a row of `pipeline.search.tally.summary`."""
    return Candidate(ModelSpec.parse(trial["spec"]), Hyper(**trial["hyper"]))


def part_of(arrays: Arrays, share: float, seed: int) -> Arrays:
    """So much of each class of the training images, one at the least; validation stays whole."""
    if share >= 1:
        return arrays
    rng, labels = np.random.default_rng(seed), arrays.train_labels
    mixed = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    part = np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in mixed]))
    return replace(arrays, train=Rows(arrays.train, part), train_labels=labels[part])
