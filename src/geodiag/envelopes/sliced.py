"""Envelopes of norms of slices, for the tensors that stack them."""

from __future__ import annotations

from geodiag.blocks import Blocks
from geodiag.core.slices import Slices
from geodiag.envelopes.base import Envelope, Form, Map, Weights


class Sliced(Envelope):
    """The forms of an envelope over slices, on whole tensors."""

    def __init__(self, inner: Envelope, slices: Slices) -> None:
        self._inner, self._slices = inner, slices
        self.rigid = inner.rigid

    def interior(self) -> Weights:
        return self._inner.interior()

    def bound(self, weights: Weights) -> float:
        return self._inner.bound(weights)

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        return self._inner.fit(self._slices.split(images, lead=1), start)

    def form(self, weights: Weights) -> Form:
        form = self._inner.form(weights)
        root = None if form.root is None else self._whole(form.root)
        return Form(form.bound, self._whole(form.apply), self._whole(form.solve), root)

    def _whole(self, f: Map) -> Map:
        return lambda x: self._slices.join(f(self._slices.split(x, lead=1)), lead=1)
