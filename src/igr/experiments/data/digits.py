"""scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igr.experiments.data.source import Bytes, Files, Source, Split


@dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's 1,797 digits of 8x8 pixels with 17 grey levels: embedded, so no file is needed.

    The digits lie in the order of those who wrote them, so they are shuffled, once and for all; the last
    297 are the test set.
    """

    shape = (8, 8)
    binary = True
    held_out = 300
    citation = "E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998."
    num_train = 1500
    num_test = 297
    lr = 3e-3  # they are few: at the others' rate the code is not used

    def images(self, split: Split, files: Files) -> Bytes:
        """Pixels of at least 8 of 16."""
        from sklearn.datasets import load_digits

        images = load_digits().data >= 8
        # RandomState, since numpy promises that its numbers never change.
        order = np.random.RandomState(0).permutation(len(images))
        chosen = order[: -self.num_test] if split == "train" else order[-self.num_test :]
        return images[chosen].astype(np.uint8)
