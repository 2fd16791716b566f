"""The response cache: what was asked once is answered from disk, whoever asks, and a bad file says what to do."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.errors import InputError, RunError
from envs.hashing import canonical, text_hash
from envs.models.cache import CachedModel, ResponseCache, cache_key
from envs.models.model_client import Answer, Ask, ChatMessage, ModelError, ScriptedModel


def ask(text: str = "How are you?", **changes: object) -> Ask:
    return Ask.model_validate({"messages": [ChatMessage(role="user", content=text)]} | changes)


def answer(text: str) -> Answer:
    return Answer(text=text, model="m", prompt_tokens=3, completion_tokens=2, cost=0.25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "answers.sqlite"


def test_a_second_ask_is_answered_from_disk_with_all_that_the_first_one_told(path: Path) -> None:
    model = ScriptedModel(["Tired."])
    first = asyncio.run(CachedModel(model, ResponseCache(path)).ask(ask()))
    cache = ResponseCache(path)
    second = asyncio.run(CachedModel(model, cache).ask(ask()))
    assert (first.cached, second) == (False, first.model_copy(update={"cached": True}))
    assert len(model.asked) == 1
    assert (cache.hits, cache.misses, cache.size()) == (1, 0, 1)


def test_the_key_is_the_hash_of_the_canonical_model_and_ask() -> None:
    plain = {
        "ask": {
            "answer_schema": {"type": "object"},
            "attempt": 1,
            "max_tokens": 512,
            "messages": [{"content": "Grüße", "role": "user"}],
            "schema_name": "answer",
            "seed": 4,
            "temperature": 0.0,
        },
        "model": "m",
    }
    asked = ask("Grüße", answer_schema={"type": "object"}, attempt=1, seed=4)
    assert cache_key("m", asked) == text_hash(canonical(plain))


CHANGES = {
    "seed": 1,
    "attempt": 1,
    "temperature": 0.5,
    "max_tokens": 7,
    "schema_name": "other",
    "answer_schema": {"type": "object"},
    "messages": [ChatMessage(role="system", content="How are you?")],
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_asked_otherwise_is_another_key(name: str) -> None:
    assert set(CHANGES) == set(Ask.model_fields)
    assert cache_key("m", ask(**{name: CHANGES[name]})) != cache_key("m", ask())
    assert cache_key("other", ask()) != cache_key("m", ask())


@given(st.text(min_size=1))
def test_any_text_is_kept_as_it_is(text: str) -> None:
    cache = ResponseCache(Path(":memory:"))
    assert cache.find("k") is None
    cache.keep("k", answer(text))
    assert cache.find("k") == answer(text).model_copy(update={"cached": True})
    cache.close()


def test_the_first_answer_stays_and_is_what_later_ones_give_way_to(path: Path) -> None:
    cache = ResponseCache(path)
    assert cache.keep("k", answer("first")).text == "first"
    assert cache.keep("k", answer("second")).text == "first"
    assert cache.size() == 1


def test_without_a_model_only_the_cache_answers_and_a_miss_names_what_is_missing(path: Path) -> None:
    cache = ResponseCache(path)
    asyncio.run(CachedModel(ScriptedModel(["Tired."], "m"), cache).ask(ask()))
    offline = CachedModel(None, cache, "m")
    assert asyncio.run(offline.ask(ask())).text == "Tired."
    missing = ask("And now?", schema_name="feeling", seed=3, attempt=2)
    with pytest.raises(ModelError, match=r"holds no answer of m to 'feeling' \(seed 3, attempt 2, key") as raised:
        asyncio.run(offline.ask(missing))
    assert cache_key("m", missing)[:12] in str(raised.value) and "And now?" not in str(raised.value)
    with pytest.raises(ValueError, match="needs the name"):
        CachedModel(None, cache)


def test_a_failed_ask_keeps_nothing(path: Path) -> None:
    cache = ResponseCache(path)
    with pytest.raises(ModelError):
        asyncio.run(CachedModel(ScriptedModel([]), cache).ask(ask()))
    assert cache.size() == 0


def test_many_tasks_and_threads_share_one_cache(path: Path) -> None:
    cache = ResponseCache(path)

    def work(number: int) -> list[str]:
        async def some() -> list[str]:
            model = CachedModel(ScriptedModel([f"from {number}"] * 40, "m"), cache)
            answers = await asyncio.gather(*(model.ask(ask(str(each))) for each in range(40)))
            return [each.text for each in answers]

        return asyncio.run(some())

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(work, range(4)))
    assert cache.size() == 40
    assert told == [[str((cache.find(cache_key("m", ask(str(each)))) or answer("")).text) for each in range(40)]] * 4


def _write(path: str, name: str) -> None:
    cache = ResponseCache(Path(path))
    for number in range(100):
        cache.keep(f"{number}", answer(f"{name} {number}"))
    os._exit(0)  # as a process ends that is killed: without closing


def test_processes_that_open_and_write_at_once_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(path), f"writer {number}")) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert [writer.exitcode for writer in writers] == [0] * 4
    cache = ResponseCache(path)
    assert cache.size() == 100
    assert all((cache.find(f"{number}") or answer("")).text.endswith(f" {number}") for number in range(100))


def test_a_forked_process_opens_the_file_for_itself(path: Path) -> None:
    cache = ResponseCache(path)
    cache.keep("before", answer("a"))
    child = os.fork()
    if child == 0:
        found = cache.find("before")
        cache.keep("in the child", answer("b"))
        os._exit(0 if found and found.text == "a" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.keep("after", answer("c"))
    assert cache.size() == 3


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a diary, not a database\n" * 100, encoding="utf-8")
    with pytest.raises(InputError, match=r"notes\.txt: is not a response cache; give another path"):
        ResponseCache(path)
    assert path.read_text(encoding="utf-8").startswith("a diary")


def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="is not a response cache of this version; give another path"):
        ResponseCache(path)
    assert path.read_bytes() == before


def test_a_path_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path, tmp_path / "file" / "answers.sqlite"):
        with pytest.raises(InputError, match="give a path"):
            ResponseCache(path)


def test_a_damaged_file_says_so(path: Path) -> None:
    cache = ResponseCache(path)
    for number in range(2000):
        cache.keep(f"{number}", answer("x" * 50))
    cache.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * (size - 4096))
    damaged = ResponseCache(path)
    with pytest.raises(RunError, match=r"answers\.sqlite: is damaged; delete it and run again"):
        damaged.find("77")


def test_an_answer_that_can_not_be_read_says_so(path: Path) -> None:
    cache = ResponseCache(path)
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO answers VALUES ('k', 'no JSON')")
    database.close()
    with pytest.raises(RunError, match="holds an answer that can't be read; delete the file"):
        cache.find("k")


def test_a_locked_file_says_so_after_its_time(path: Path) -> None:
    cache = ResponseCache(path, lock_seconds=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match="is locked by another process; end that one"):
        cache.keep("k", answer("a"))
    other.execute("COMMIT")
    other.close()
    assert cache.keep("k", answer("a")).text == "a"


def test_a_full_disk_says_so_and_loses_nothing(path: Path) -> None:
    cache = ResponseCache(path)
    cache.keep("kept", answer("a"))
    # The error that SQLite raises on a full disk, by its own limit on the size of the file.
    cache._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises(RunError, match="the disk is full; free some space and run again"):
        for number in range(100):
            cache.keep(f"{number}", answer("x" * 2000))
    assert (cache.find("kept") or answer("")).text == "a"
