"""Names on the Hub: one short attempt, then the cache, then an error with a suggestion."""

import socket
import time

import pytest

from llm_lab.errors import UserError
from llm_lab.hf import hub
from llm_lab.hf.hub import go_offline_without_hub, look_at_model, near_folder
from llm_lab.hf.load import read_config


@pytest.fixture
def silent_hub(monkeypatch):
    """An endpoint at which nobody listens, for libraries that are not set to stay offline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", False)
    return endpoint


def test_an_unknown_name_is_refused_in_seconds_if_the_hub_does_not_answer(silent_hub, in_tmp_path):
    (in_tmp_path / "mymodel").mkdir()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the Hub can't be reached. Did you mean mymodel\?"):
        read_config("mymodl/x", key="checkpoint")
    assert time.monotonic() - started < 5


def test_the_hub_is_asked_once_and_the_users_own_choice_is_kept(silent_hub, monkeypatch):
    asked = []
    real = socket.create_connection
    monkeypatch.setattr("socket.create_connection", lambda *args, **more: asked.append(args) or real(*args, **more))
    assert go_offline_without_hub()
    assert go_offline_without_hub()
    assert len(asked) == 1
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert not go_offline_without_hub(), "it is offline by choice, as far as this endpoint is concerned"
    assert len(asked) == 1


def test_a_hub_that_answers_is_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        assert not go_offline_without_hub()
        assert endpoint not in hub._SILENT


def test_a_check_says_that_a_model_was_not_checked(silent_hub, in_tmp_path):
    (in_tmp_path / "mymodel").mkdir()
    remark = look_at_model("mymodl/x", key="model.checkpoint")
    assert remark is not None
    assert "was not checked: the Hub can't be reached. Did you mean mymodel?" in remark
    assert near_folder("something else entirely") is None
    with pytest.raises(UserError, match="Repo id must use"):
        look_at_model("[red]x[/]", key="model.checkpoint")
