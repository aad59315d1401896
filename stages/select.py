"""What of a source is left out: by pattern, cache directories, large files, other file systems, the store itself.

Patterns are those of gitignore, made into expressions by pathspec, over paths below the source; the last that matches
decides. The walk does not descend into what is left out, so nothing below it can be taken in again. A source itself is
never left out: somebody named it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.errors import UsageError

#: Why something is left out; also the order of its counts.
REASONS = ("pattern", "cache", "size", "filesystem", "store")
PATTERN, CACHE, SIZE, FILESYSTEM, STORE = range(len(REASONS))
#: Device and inode of a directory.
Identity = tuple[int, int]

CACHE_TAG = b"CACHEDIR.TAG"
#: The first bytes of a tag that counts: Cache Directory Tagging Specification, bford.info/cachedir.
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"

#: pathspec's expressions take a newline for an end. Names may hold one, so it travels as a surrogate that os.fsdecode
#: never makes.
_NEWLINE = "\udc0a"


@dataclass(frozen=True)
class SelectOptions:
    """What to leave out. `patterns`: lines of gitignore, `!` takes in again, as str with surrogates for bytes that are
    not UTF-8; `caches`: contents of tagged cache directories; `larger_than`: files of more bytes; `one_file_system`:
    contents of directories on other file systems than the source's."""

    patterns: tuple[str, ...] = ()
    caches: bool = False
    larger_than: int | None = None
    one_file_system: bool = False

    def __bool__(self) -> bool:
        return bool(self.patterns) or self.caches or self.larger_than is not None or self.one_file_system


EVERYTHING = SelectOptions()


@dataclass(frozen=True)
class _Matcher:
    """`rules` decide, the last first: an expression over paths, and whether it leaves out. The other two, over names
    and over paths, say cheaply that none leaves out."""

    rules: list[tuple[re.Pattern[str], bool]]
    names: re.Pattern[str] | None
    paths: re.Pattern[str] | None


def _within(pattern: str) -> str:
    """`x/**` means all that is in x, not x: said so that a trailing slash on x does not match it."""
    return re.sub(r"/\*\*(/?)\s*$", r"/**/*\1", pattern.replace("\n", _NEWLINE))


def _compile(patterns: Sequence[str]) -> _Matcher:
    # Imported where it is needed: workers of runs without patterns start sooner.
    from pathspec import GitIgnoreSpec

    try:
        # Of pathspec we take the expressions. Its other backends would need engines that don't take surrogates.
        spec = GitIgnoreSpec.from_lines(map(_within, patterns), backend="simple")
    except (ValueError, re.error) as error:
        raise UsageError(f"a pattern that can't be read: {error}") from error
    compiled = iter(spec.patterns)  # blank ones are not among them
    rules: list[tuple[re.Pattern[str], bool]] = []
    sides: tuple[list[str], list[str]] = ([], [])
    for text in patterns:
        pattern: Any = next(compiled) if text else None
        if pattern is None or pattern.include is None:
            raise UsageError(f"{text!r} is no pattern: it would match nothing; see gitignore(5)")
        # Without its groups' names, which would be there twice in an alternation. To the very end, for pathspec's also
        # match what lies in a directory that they match: the walk has decided about that one already.
        expression = "(?:" + re.sub(r"\(\?P<\w+>", "(?:", pattern.regex.pattern) + r")\Z"
        rules.insert(0, (re.compile(expression), pattern.include))
        if pattern.include:
            sides["/" in text.rstrip().removesuffix("/")].append(expression)
    names, paths = (re.compile("|".join(side)) if side else None for side in sides)
    return _Matcher(rules, names, paths)


class Selection:
    """Options at work; `counts` says for each reason what was left out so far: objects, and bytes where they are known
    (a directory counts once, and what is in it not at all). `own`: directories of the store, whose contents are left
    out whatever the options; `note(path, reason)` hears of each."""

    def __init__(
        self,
        options: SelectOptions,
        note: Callable[[bytes, int], None] | None = None,
        own: Collection[Identity] = (),
    ) -> None:
        """Raises UsageError naming a pattern that makes no sense."""
        self._options = options
        self._matcher = _compile(options.patterns) if options.patterns else None
        self._note = note
        self._own = frozenset(own)
        self.limit = options.larger_than
        self.counts = [[0, 0] for _ in REASONS]

    def _leave_out(self, path: bytes, reason: int, size: int = 0) -> None:
        self.counts[reason][0] += 1
        self.counts[reason][1] += size
        if self._note is not None:
            self._note(path, reason)

    def matches(self, path: bytes, below: bytes, is_folder: bool) -> bool:
        """Whether the patterns leave out the object `path`, which is `below` from its source."""
        matcher = self._matcher
        if matcher is None:
            return False
        folder, _, name = os.fsdecode(below).rpartition("/")
        found = self._matches(matcher, _prefix(folder), name, is_folder)
        if found:
            self._leave_out(path, PATTERN)
        return found

    def keep(
        self, path: bytes, below: bytes, items: list[tuple[bytes, os.DirEntry[str]]]
    ) -> list[tuple[bytes, os.DirEntry[str]]]:
        """Those of a directory's `items` that the patterns don't leave out. `path`: of the directory's object, `below`:
        its path from the source. `items` itself where there are no patterns."""
        matcher = self._matcher
        if matcher is None:
            return items
        folder = _prefix(os.fsdecode(below))
        kept = []
        for pair in items:
            name, item = pair
            is_folder = item.is_dir(follow_symlinks=False)
            if self._matches(matcher, folder, item.name, is_folder):
                self._leave_out(path + b"/" + name, PATTERN, 0 if is_folder else _size(item))
            else:
                kept.append(pair)
        return kept

    @staticmethod
    def _matches(matcher: _Matcher, folder: str, name: str, is_folder: bool) -> bool:
        if "\n" in name:
            name = name.replace("\n", _NEWLINE)
        if is_folder:
            name += "/"
        if (matcher.names is None or matcher.names.search(name) is None) and (
            matcher.paths is None or matcher.paths.search(folder + name) is None
        ):
            return False
        path = folder + name
        return next((leaves_out for rule, leaves_out in matcher.rules if rule.search(path) is not None), False)

    def too_large(self, path: bytes, info: os.stat_result) -> bool:
        """Whether the object is a file of more than `limit` bytes."""
        if not stat.S_ISREG(info.st_mode) or self.limit is None or info.st_size <= self.limit:
            return False
        self._leave_out(path, SIZE, info.st_size)
        return True

    def is_own(self, path: bytes, info: os.stat_result) -> bool:
        """Whether the directory `path` is one of the store's."""
        if (info.st_dev, info.st_ino) not in self._own:
            return False
        self._leave_out(path, STORE)
        return True

    def crosses(self, path: bytes, device: int, info: os.stat_result) -> bool:
        """Whether the content of the directory `path` is on another file system than `device`, and those are left out.
        Asked for directories only: overlay file systems give files devices of their own."""
        if not self._options.one_file_system or info.st_dev == device:
            return False
        self._leave_out(path, FILESYSTEM)
        return True

    def cache_tag(self, path: bytes, fd: int) -> bytes | None:
        """The name of the tag in the directory `fd`, where it is a cache and those are left out. Its content is: the
        directory and the tag go in, so that what is restored is a cache again."""
        if not self._options.caches:
            return None
        try:
            tag = os.open(CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        except OSError:
            return None  # no tag that can be read makes no cache: the content goes in
        try:
            is_cache = stat.S_ISREG(os.fstat(tag).st_mode) and os.read(tag, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
        except OSError:
            return None
        finally:
            os.close(tag)
        if is_cache:
            self._leave_out(path, CACHE)
        return CACHE_TAG if is_cache else None


def _prefix(folder: str) -> str:
    return folder.replace("\n", _NEWLINE) + "/" if folder else ""


def _size(item: os.DirEntry[str]) -> int:
    try:
        info = item.stat(follow_symlinks=False)
    except OSError:
        return 0  # it is gone, and would not have gone in
    return info.st_size if stat.S_ISREG(info.st_mode) else 0
