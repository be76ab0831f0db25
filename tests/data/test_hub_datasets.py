"""Hub datasets are read, and each kind of failure to load one has its own error."""

import importlib

import datasets
import huggingface_hub.errors
import pytest

from llm_lab.data.sources import look_at_source, open_source
from llm_lab.errors import UserError

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def hub(monkeypatch):
    """Return a function that sets what load_dataset returns or raises."""

    def answer(result):
        def load_dataset(path, subset, *, split):
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return answer


def refusal(path="owner/name", **settings) -> str:
    with pytest.raises(UserError) as caught:
        open_source(path, **settings)
    return str(caught.value)


def test_a_dataset_is_read_by_its_text_column(hub):
    hub(datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["one", None, "three"]}))
    source = open_source("owner/name", subset="en", split="test")
    assert list(source.documents()) == ["one", "three"]
    assert source.describe() == ("Hub dataset owner/name (subset en, split test), 3 rows, column 'text' (of: id, text)")


def test_the_fingerprint_of_a_dataset_depends_on_its_text(hub):
    def fingerprint(*texts):
        hub(datasets.Dataset.from_dict({"text": list(texts)}))
        return open_source("owner/name").fingerprint

    assert fingerprint("one", "two") == fingerprint("one", "two")
    assert fingerprint("one", "two") != fingerprint("onet", "wo")


def test_a_wrong_column_of_a_dataset_is_reported(hub):
    hub(datasets.Dataset.from_dict({"id": [1], "texts": ["one"]}))
    assert "Did you mean texts?" in refusal(text_column="text")
    assert "This column does not contain text. Allowed: texts." in refusal(text_column="id")


def test_an_empty_dataset_is_refused(hub):
    hub(datasets.Dataset.from_dict({"text": []}, features=datasets.Features({"text": datasets.Value("string")})))
    assert "It contains no text" in refusal()


def test_the_error_without_a_network_names_the_hub_and_suggests_a_local_path(hub, tmp_path):
    (tmp_path / "shakespeare").mkdir()
    hub(ConnectionError("Couldn't reach 'shakespere' on the Hub (LocalEntryNotFoundError)"))
    message = refusal("shakespere")
    assert "No such local file, and the Hugging Face Hub can't be reached." in message
    assert "Did you mean shakespeare?" in message
    assert "a built-in dataset" in message


def test_a_timeout_is_a_network_error(hub):
    client = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.split(".")[0])
    hub(client.ReadTimeout("timed out"))
    assert "can't be reached" in refusal()


def test_the_error_in_offline_mode_names_the_variable(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("owner/no-such-dataset")
    assert "downloads are disabled (HF_HUB_OFFLINE)" in message
    assert "Unset HF_HUB_OFFLINE" in message


def test_the_error_for_a_gated_dataset_shows_how_to_get_access(hub):
    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."))
    message = refusal()
    assert "This dataset is gated" in message
    assert "Accept them at https://huggingface.co/datasets/owner/name" in message
    assert "`hf auth login` or set HF_TOKEN" in message


def test_a_missing_or_private_dataset_is_reported(hub):
    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'x/aggregated' doesn't exist on the Hub"))
    message = refusal("x/aggregated")
    assert "no such dataset on the Hub (or it is private)" in message
    assert "Check the name at https://huggingface.co/datasets/x/aggregated" in message


def test_the_subsets_are_listed_if_none_is_named(hub):
    message = "Config name is missing.\nPlease pick one among the available configs: ['en', 'de']\nExample"
    hub(ValueError(message))
    assert refusal() == "data.0.subset: owner/name has several subsets: name one. Allowed: en, de."


def test_a_mistyped_subset_gets_a_suggestion(hub):
    hub(ValueError("BuilderConfig 'sample-10' not found. Available: ['default', 'sample-10BT']"))
    message = refusal(subset="sample-10", key="data.1")
    assert "data.1.subset = sample-10: owner/name has no such subset." in message
    assert "Allowed: default, sample-10BT. Did you mean sample-10BT?" in message


@pytest.mark.parametrize(
    "message",
    [
        "Unknown split \"tran\". Should be one of ['train', 'test'].",
        "Bad split: tran. Available splits: ['train', 'test']",
    ],
)
def test_the_splits_are_listed_for_an_unknown_split(hub, message):
    hub(ValueError(message))
    assert "data.0.split = tran: owner/name has no such split. Allowed: train, test. Did you mean train?" in (
        refusal(split="tran")
    )


def test_the_splits_of_a_real_dataset_are_listed_for_an_unknown_split(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "one"}\n')
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, subset, *, split: load("json", data_dir=str(tmp_path / "rows"), split=split, cache_dir=tmp_path),
    )
    assert list(open_source("owner/name").documents()) == ["one"]
    assert "data.0.split = test: owner/name has no such split. Allowed: train." in refusal(split="test")


def test_a_dataset_script_is_not_run(hub):
    hub(RuntimeError("Dataset scripts are no longer supported, but found name.py"))
    assert "a Python script; scripts are not supported. Download Parquet files from" in refusal()


def test_a_full_disk_is_reported(hub):
    hub(OSError(28, "No space left on device"))
    assert "The disk is full. Free some space, or set HF_HOME" in refusal()


def test_tokens_are_never_in_a_message(hub):
    hub(ValueError("odd request with hf_abcdefghijklmnop and Bearer secret-thing"))
    message = refusal()
    assert "hf_abc" not in message
    assert "secret-thing" not in message
    assert "The datasets library can't read it: odd request" in message


def test_a_check_finds_out_whether_this_user_has_access_to_a_gated_dataset(hub, monkeypatch):
    """The page of a gated dataset is public; only auth_check shows who can read it."""
    from types import SimpleNamespace

    from huggingface_hub.errors import GatedRepoError

    client = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.split(".")[0])
    request = client.Request("GET", "https://huggingface.co/api/datasets/owner/name/auth-check")
    asked = []

    def auth_check(self, path, *, repo_type):
        asked.append((path, repo_type))
        raise GatedRepoError("403 Client Error", response=client.Response(403, request=request))

    gated = {"is": "manual"}
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(gated=gated["is"]))
    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", auth_check)
    with pytest.raises(UserError, match="This dataset is gated"):
        look_at_source("owner/name", streaming=True)
    assert asked == [("owner/name", "dataset")]
    gated["is"] = False
    assert look_at_source("owner/name") is None
    assert len(asked) == 1
