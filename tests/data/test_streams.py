"""Streams give the same documents as files read at once, in order, once per epoch, and resume at any block."""

import gzip
import json
import threading

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lab.data import block_dataset, readers
from llm_lab.data.block_dataset import BlockDataset, BlockStream, prepare_stream
from llm_lab.data.mixing import build_schedule
from llm_lab.data.sources import look_at_source, open_source
from llm_lab.data.streams import hold_out, open_stream
from llm_lab.errors import UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer

TOKENIZER = make_byte_tokenizer()
EOS = TOKENIZER.eos_token_id
DOCUMENTS = [f"document {number}: " + "äh, so\n\n" * (number % 7) + "end" for number in range(150)]


def write(kind: str, folder, documents=DOCUMENTS) -> str:
    """Write documents to three files of a type; return the path for a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    third = -(-len(documents) // 3)
    for index in range(3):
        part = documents[index * third : (index + 1) * third]
        rows = [{"id": number, "text": text} for number, text in enumerate(part)]
        file = folder / f"{index}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=17)
        elif kind == "csv":
            cells = (f'{row["id"]},"{row["text"]}"\r\n' for row in rows)
            file.write_bytes("".join(["id,text\r\n", *cells]).encode())
        elif kind == "txt":
            for number, text in enumerate(part):
                (folder / f"{index}-{number:03}.txt").write_text(text)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (gzip.open if kind.endswith("gz") else open)(file, "wb").write(lines)
    return str(folder)


class FakeHub:
    """Replaces load_dataset with streaming=True: three shards, read with the library's own reader."""

    def __init__(self, files: str):
        self.files = files

    def __call__(self, path, subset, *, split, streaming):
        assert streaming
        return self.original("parquet", data_files=f"{self.files}/*.parquet", split=split, streaming=True)


@pytest.fixture(params=["jsonl", "jsonl.gz", "csv", "parquet", "txt", "hub"])
def stream(request, tmp_path, monkeypatch):
    kind = request.param
    path = write("parquet" if kind == "hub" else kind, tmp_path / "set")
    if kind == "hub":
        fake = FakeHub(path)
        fake.original = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", fake)
        path = "owner/name"
    return open_stream(path)


def texts(found) -> list[str]:
    return [piece.text for piece in found]


def blocks_of(source, count, max_length=16, state=None, first=0):
    reading = BlockStream(source, TOKENIZER, max_length=max_length, state=state)
    try:
        return [reading.block(k).tolist() for k in range(first, count)]
    finally:
        reading.close()


def tokens_of(documents) -> list[int]:
    return [token for text in documents for token in [*text.encode(), EOS]]


def test_a_stream_gives_the_documents_in_order(stream):
    assert texts(stream.pieces()) == DOCUMENTS
    assert texts(stream.pieces()) == DOCUMENTS, "and a second time"


def test_reading_resumes_after_any_document(stream):
    positions = [json.loads(json.dumps(piece.position())) for piece in stream.pieces()]
    for index in (0, 16, 17, 49, 50, 51, 99, 148, 149):
        assert texts(stream.pieces(positions[index])) == DOCUMENTS[index + 1 :]


def test_blocks_are_the_tokens_in_order_in_every_epoch(stream):
    source = hold_out(stream, 20)
    expected = tokens_of(DOCUMENTS[20:]) * 3
    found = blocks_of(source, 2 * len(expected) // 3 // 16 + 5)
    assert found == [expected[k * 16 : k * 16 + 17] for k in range(len(found))]


def test_a_resumed_stream_gives_the_same_blocks_from_any_block_on(stream, monkeypatch):
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 300)
    source = hold_out(stream, 20)
    whole = blocks_of(source, 700)
    reading = BlockStream(source, TOKENIZER, max_length=16)
    for k in range(650):
        reading.block(k)
        reading.consumed(k)  # the trainer reads one block ahead
        if k in (0, 7, 101, 333, 334, 600):
            state = json.loads(json.dumps(reading.state(k)))
            assert k * 16 - state["tokens"] < 700, "only a little is read again"
            again = hold_out(open_stream(stream.path), 20)
            assert blocks_of(again, 700, state=state, first=k) == whole[k:]
    assert len(reading._marks) < 40
    reading.close()


def test_a_resumed_stream_does_not_read_earlier_files(tmp_path, monkeypatch):
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 300)
    source = hold_out(open_stream(write("parquet", tmp_path / "set")), 0)
    reading = BlockStream(source, TOKENIZER, max_length=16)
    late = len(tokens_of(DOCUMENTS)) // 16 - 4
    expected = reading.block(late).tolist()
    state = reading.state(late)
    reading.close()
    (tmp_path / "set/0.parquet").write_bytes(b"gone")
    (tmp_path / "set/1.parquet").write_bytes(b"gone")
    assert blocks_of(source, late + 1, state=state, first=late) == [expected]


def test_later_duplicates_of_validation_documents_are_left_out_of_training(tmp_path):
    kept, later = DOCUMENTS[:5], DOCUMENTS[5:40]
    path = write("jsonl", tmp_path / "set", [*kept, *later[:10], *kept[:3], *later[10:]])
    source = hold_out(open_stream(path), 5)
    assert texts(source.training_pieces()) == later
    tokens = prepare_stream(source, TOKENIZER)
    assert tokens.validation.tolist() == tokens_of(kept)
    assert tokens.validation_sizes.sum() == sum(len(text.encode()) for text in kept)
    assert "its first 5 documents" in tokens.description


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=30).filter(lambda text: not text.isspace()), min_size=8, max_size=40),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(20, 200),
)
def test_validation_documents_are_never_trained_on(tmp_path_factory, documents, keep, stop_at, chunk):
    folder = tmp_path_factory.mktemp("set")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    source = hold_out(open_stream(str(folder)), keep)
    trained = [text for text in documents[keep:] if text not in documents[:keep]]
    assert [text for text, _ in source.kept] == documents[:keep]
    expected = tokens_of(trained)
    if len(expected) < 5:
        with pytest.raises(UserError, match="The stream has"):
            blocks_of(source, 1, max_length=4)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_dataset, "CHUNK_CHARACTERS", chunk)
        reading = BlockStream(source, TOKENIZER, max_length=4)
        found = [reading.block(k).tolist() for k in range(stop_at)]
        state = reading.state(stop_at)
        reading.close()
        found += blocks_of(source, stop_at + 20, max_length=4, state=state, first=stop_at)
    endless = expected * (2 + (stop_at + 21) * 4 // len(expected))
    assert found == [endless[k * 4 : k * 4 + 5] for k in range(len(found))]


def test_a_long_text_is_read_in_pieces_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_PIECE_BYTES", 64)
    text = "\ufefföne line of the text\n\nand another\n  indented ünd länger " * 40
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("x" * 300)
    (tmp_path / "c.txt").write_text(" \n" * 100)
    stream = open_stream(str(tmp_path / "*.txt"))
    found = list(stream.pieces())
    assert len(found) > 10
    assert "".join(texts(found)) == text.removeprefix("\ufeff") + "x" * 300
    assert [piece.text for piece in found if piece.begins][1][0] == "x"
    assert sum(piece.ends for piece in found) == 2
    for index, piece in enumerate(found):
        assert texts(stream.pieces(piece.position())) == texts(found[index + 1 :])


def test_only_a_few_chunks_are_read_ahead_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 500)
    source = hold_out(open_stream(write("jsonl", tmp_path / "set", DOCUMENTS * 20)), 0)
    reading = BlockStream(source, TOKENIZER, max_length=16)
    for k in range(200):
        reading.block(k)
        assert reading._until - reading._from < 2_000
        assert reading._ready.qsize() <= 8
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream of")]


def test_epochs_are_counted_and_the_end_of_the_first_is_found(tmp_path):
    source = hold_out(open_stream(write("jsonl", tmp_path / "set")), 0)
    tokens = len(tokens_of(DOCUMENTS))
    whole = (tokens - 1) // 16
    reading = BlockStream(source, TOKENIZER, max_length=16)
    assert reading.first_epoch_holds(whole)
    assert not reading.first_epoch_holds(whole + 1)
    assert reading.epochs(whole) is None, "its length is unknown until it was read"
    for k in range(2 * whole):
        reading.block(k)
    assert reading.epochs(2 * whole) == pytest.approx(2 * whole * 16 / tokens)
    reading.close()


def test_a_stream_is_read_forward_only(tmp_path, monkeypatch):
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 500)
    reading = BlockStream(hold_out(open_stream(write("jsonl", tmp_path / "set")), 0), TOKENIZER, max_length=16)
    reading.block(300)
    with pytest.raises(IndexError, match="read forward only"):
        reading.block(2)
    reading.close()


def test_streams_and_files_are_mixed_by_their_exact_shares(tmp_path):
    source = hold_out(open_stream(write("jsonl", tmp_path / "set")), 0)
    tokens = [np.full(5000, 7, dtype=np.uint16), BlockStream(source, TOKENIZER, max_length=16)]
    order = build_schedule([5000, None], [2.0, 1.0], max_length=16, num_samples=300, seed=1)
    mixed = BlockDataset(order, tokens)
    items = [mixed[i]["input_ids"].tolist() for i in range(300)]
    mixed.close()
    streamed = [ids for ids in items if set(ids) != {7}]
    assert len(streamed) == 100
    assert streamed == [ids[:-1] for ids in blocks_of(source, 100)]
    assert mixed.epochs(300)[0] == order.epochs(300)[0] > 0


def test_two_processes_read_the_same_rows_as_one(tmp_path):
    source = hold_out(open_stream(write("jsonl", tmp_path / "set")), 10)
    order = build_schedule([None], [1.0], max_length=16, num_samples=64, seed=1)

    def rows(indices):
        dataset = BlockDataset(order, [BlockStream(source, TOKENIZER, max_length=16)])
        found = {i: dataset[i]["input_ids"].tolist() for i in indices}
        states = dataset.stream_states(32)
        dataset.close()
        return found, states

    # As accelerate distributes batches of four: the first to one process, the second to the other.
    one, two = (rows([i for i in range(64) if i // 4 % 2 == rank]) for rank in (0, 1))
    whole = rows(range(64))
    assert one[0] | two[0] == whole[0]
    assert one[1] == two[1] == whole[1]


def refusal(*arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        hold_out(open_stream(*arguments, **settings), 1000)
    return str(caught.value)


def test_sources_that_cannot_be_streamed_are_refused(tmp_path):
    small = write("jsonl", tmp_path / "small")
    assert "all of them would be held out for validation" in refusal(small)
    assert "Did you mean text?" in refusal(small, text_column="texts")
    assert "only Hub datasets have subsets" in refusal(small, subset="en")
    (tmp_path / "list.json").write_text('[{"text": "one"}]')
    assert "A JSON list, or an object that spans lines, can't be streamed" in refusal(str(tmp_path / "list.json"))
    (tmp_path / "one.json").write_text('{\n "text": "one"\n}\n')
    assert "can't be streamed" in refusal(str(tmp_path / "one.json"))
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    assert "It contains no text" in refusal(str(tmp_path / "empty.jsonl"))
    assert "There is no folder nowhere" in refusal("nowhere/at/all.jsonl")


def test_a_check_of_a_stream_does_not_read_all_of_it(tmp_path):
    path = tmp_path / "big.jsonl"
    path.write_text('{"text": "one"}\n' * 30 + "broken\n")
    assert look_at_source(str(path), streaming=True) is None
    with pytest.raises(UserError, match="is not JSON"):
        list(open_source(str(path)).documents())


def test_an_error_late_in_a_stream_reaches_the_trainer_as_a_user_error(tmp_path):
    path = tmp_path / "big.jsonl"
    path.write_text('{"text": "one two three"}\n' * 30 + "broken\n")
    reading = BlockStream(hold_out(open_stream(str(path)), 2), TOKENIZER, max_length=16)
    with pytest.raises(UserError, match=r"line 31 of .* is not JSON"):
        reading.block(100)
    reading.close()


def test_the_fingerprint_depends_on_the_held_out_text_and_the_file_sizes(tmp_path):
    def fingerprint(name, documents, keep=20):
        return hold_out(open_stream(write("jsonl", tmp_path / name, documents)), keep).fingerprint

    first = fingerprint("a", DOCUMENTS)
    assert first == fingerprint("b", DOCUMENTS)
    assert first != fingerprint("c", ["other", *DOCUMENTS[1:]])
    assert first != fingerprint("d", DOCUMENTS[:-1])
