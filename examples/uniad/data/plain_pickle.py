"""Pickles from elsewhere, read as plain data: a pickle can carry code, so only containers, numbers and arrays pass."""

from __future__ import annotations

import codecs
import collections
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from errors import UniADError


class PickleError(UniADError):
    """A pickle is unreadable or asks for more than plain data."""


class PlainUnpickler(pickle.Unpickler):
    """Admits what numpy arrays and scalars, ordered dictionaries and bytes are made of, and what stands in `classes`.

    `classes` maps (module, name) to what takes its place.
    """

    def __init__(self, file: IO[bytes], classes: Mapping[tuple[str, str], Any] | None = None):
        super().__init__(file)
        self._classes = classes or {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._classes:
            return self._classes[module, name]
        multiarray = np.empty(0).__reduce__()[0].__module__  # numpy.core.multiarray or numpy._core.multiarray
        if re.fullmatch(r"numpy\._?core\.multiarray", module) and name in ("_reconstruct", "scalar"):
            return super().find_class(multiarray, name)
        if re.fullmatch(r"numpy\._?core\.numeric", module) and name == "_frombuffer":
            return super().find_class(multiarray.replace("multiarray", "numeric"), name)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 spells bytes
            return _encode_latin1
        raise PickleError(f"it asks for {module}.{name}, which is no plain data; not loaded, no code of it was run")


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return codecs.encode(text, "latin1")


def load_plain_pickle(path: pathlib.Path, classes: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """The object in a pickle file of containers, strings, numbers and numpy arrays, and of what `classes` puts in the
    place of (module, name). Raises PickleError."""
    try:
        with open(path, "rb") as file:
            return PlainUnpickler(file, classes).load()
    except PickleError as error:
        raise PickleError(f"{path}: {error}") from error
    except OSError as error:
        raise PickleError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle raises anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise PickleError(f"{path}: not a pickle, or damaged ({reason})") from error
