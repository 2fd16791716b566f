"""Judge certificates: an audit of a judge bound to its rubric, model and prompt, in a file that shows tampering.

With a key in ATTUNE_CERT_KEY the signature is HMAC-SHA256 over the canonical JSON, and nobody without the key can write
one. Without, it is a plain digest: it shows a slip of the hand or a broken copy, and keeps nobody from forging.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from envs.errors import InputError, describe_validation
from envs.hashing import canonical
from envs.trajectory import Record
from rewards.certify import Audit

KEY_VARIABLE = "ATTUNE_CERT_KEY"
FORMAT = 1
SIGNED: Literal["hmac-sha256"] = "hmac-sha256"
UNSIGNED: Literal["unsigned (digest only)"] = "unsigned (digest only)"


class Signature(Record):
    """``value``: HMAC-SHA256, or without a key SHA-256, in hex, over the certificate less its signature."""

    kind: Literal["hmac-sha256", "unsigned (digest only)"]
    value: str


class Subject(Record):
    """The judge that a certificate is about. What is None was not told, and the certificate covers no reward then."""

    name: str
    model: str | None = None
    prompt_hash: str | None = None
    rubric: str | None = None
    rubric_hash: str | None = None


class Data(Record):
    """What the audit was made from: the files' names and SHA-256."""

    human: str
    human_sha256: str
    judge: str
    judge_sha256: str


class Certificate(Audit):
    """A judge's audit, whose it is and what it was made from, with a signature over all of it."""

    format: Literal[1] = FORMAT
    judge: Subject
    data: Data
    signature: Signature

    @classmethod
    def sign(cls, judge: Subject, data: Data, audit: Audit, key: str | None = None) -> Certificate:
        """A certificate signed with ``key``, else with the one in ATTUNE_CERT_KEY, else with a digest."""
        key = key or key_from_environment()
        blank = Signature(kind=UNSIGNED, value="")
        unsigned = cls(
            judge=judge, data=data, signature=blank, **{name: getattr(audit, name) for name in Audit.model_fields}
        )
        kind = SIGNED if key else UNSIGNED
        return unsigned.model_copy(update={"signature": Signature(kind=kind, value=unsigned._digest(key))})

    @classmethod
    def load(cls, path: Path, key: str | None = None) -> Certificate:
        """Read a certificate and verify it. Raises InputError naming the file, what is wrong and the remedy."""
        try:
            found = cls.model_validate(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once))
            found.verify(key)
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such certificate; `attune judge certify --out` writes one") from None
        except ValidationError as error:
            raise InputError(describe_validation(error, str(path))) from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: can't be read as a certificate: {error}; certify the judge again") from error
        return found

    def verify(self, key: str | None = None) -> None:
        """Raise InputError unless the signature fits; with a key known, a mere digest is refused as well."""
        key = key or key_from_environment()
        if self.signature.kind == SIGNED and not key:
            raise InputError(f"is signed, and there is no key to check it with; set {KEY_VARIABLE}")
        if self.signature.kind == UNSIGNED and key:
            raise InputError(f"is unsigned, though {KEY_VARIABLE} is set; certify the judge again with the key")
        if not hmac.compare_digest(self.signature.value.encode(), self._digest(key).encode()):
            raise InputError("does not have the signature that it names: it was changed, or signed with another key")

    def gap(self, rubric_hash: str, axis: str, model: str, prompt_hash: str) -> str | None:
        """Why this certificate does not cover such a judge on ``axis``; None where it does."""
        bound = (
            ("rubric", self.judge.rubric_hash, rubric_hash),
            ("model", self.judge.model, model),
            ("prompt", self.judge.prompt_hash, prompt_hash),
        )
        for what, certified, used in bound:
            if certified is None:
                return f"the certificate names no {what}"
            if certified != used:
                return f"the certificate is for another {what}: {certified}, and not {used}"
        report = next((one for one in self.axes if one.axis == axis), None)
        if report is None:
            return f"the certificate has no axis {axis!r}; it has {', '.join(one.axis for one in self.axes)}"
        return None if report.passes else f"the judge does not pass on {axis}: {'; '.join(report.refused_for)}"

    def covers(self, rubric_hash: str, axis: str, model: str, prompt_hash: str) -> bool:
        """Whether an axis of this rubric may carry weight when this model judges it with this prompt."""
        return self.gap(rubric_hash, axis, model, prompt_hash) is None

    def _digest(self, key: str | None) -> str:
        text = canonical(self.model_dump(mode="json", exclude={"signature"})).encode("utf-8", "surrogatepass")
        if key:
            return hmac.new(key.encode("utf-8", "surrogateescape"), text, hashlib.sha256).hexdigest()
        return hashlib.sha256(text).hexdigest()


def key_from_environment() -> str | None:
    """The signing key, None where the variable is unset or empty."""
    return os.environ.get(KEY_VARIABLE) or None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose keys stand once: a second one would be read, and the first shown to whoever looks."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
