"""Where a model's file is: a path, or ``hf:ORG/REPO/FILE.gguf`` on the Hugging Face Hub.

``hf:ORG/REPO/FILE.gguf[@REVISION][#sha256=DIGEST]``: the file is downloaded through huggingface_hub into its cache
(``HF_HOME``), with its progress bar, and only if it is not there yet. All parts of a split model are fetched.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from orcd.errors import ModelLoadFailed

PREFIX = "hf:"
SYNTAX = "hf:ORG/REPO/FILE.gguf[@REVISION][#sha256=DIGEST]"
_REFERENCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@#]+\.gguf)(@(?P<revision>[^@#]+))?(#sha256=(?P<digest>[0-9a-fA-F]{64}))?"
)
_FIRST_PART = re.compile(r"(?P<stem>.*)-00001-of-(?P<count>\d{5})\.gguf")


def local_path(reference: str | Path) -> Path:
    """The path of the file that ``reference`` means, downloaded if need be. Raises `ModelLoadFailed`."""
    text = str(reference)
    if not text.startswith(PREFIX):
        return Path(reference)
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ModelLoadFailed(f"{text}: is no model reference; write {SYNTAX}")
    first, *others = _parts(match["file"])
    path = _download(text, match["repo"], first, match["revision"])
    for other in others:
        _download(text, match["repo"], other, match["revision"])
    if match["digest"] and _sha256(path) != match["digest"].lower():
        raise ModelLoadFailed(f"{text}: the file's SHA-256 is another one; it was changed or the reference is wrong")
    return path


def _parts(file: str) -> list[str]:
    """The files of a model that is named by its first part."""
    match = _FIRST_PART.fullmatch(file)
    if match is None:
        return [file]
    return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def _download(reference: str, repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import errors, hf_hub_download  # slow to import and seldom needed

    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except errors.GatedRepoError:
        problem = f"{repo} asks for consent; accept its terms in a browser and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = f"there is no repository {repo}, or it is private: then log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        problem = f"{repo} has no revision {revision or 'main'}"
    except errors.LocalEntryNotFoundError:
        problem = "the Hub cannot be reached and the file is not in the local cache; download it and give its path"
    except errors.EntryNotFoundError:
        problem = f"{repo} has no file {file}"
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        problem = "this user has no home folder; set HF_HOME to a folder for downloads"
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        problem = f"the download failed ({type(error).__name__}); try again, or download the file and give its path"
        if isinstance(error, OSError) and error.filename:
            problem = f"{error.filename} cannot be written ({error.strerror}); set HF_HOME to a folder that can"
    raise ModelLoadFailed(f"{reference}: {problem}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
