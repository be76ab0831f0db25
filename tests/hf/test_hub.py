"""Names on the Hub: one short attempt, then the cache, then an error with a suggestion."""

import socket
import time

import pytest
from support.local_hub import LocalHub

from llm_lab.errors import UserError
from llm_lab.hf import hub
from llm_lab.hf.configs import read_config
from llm_lab.hf.hub import go_offline_without_hub, look_at_model, near_folder
from llm_lab.job import check
from llm_lab.model.modeling_lab import register
from llm_lab.runs.folder import find_model


def test_an_unknown_name_is_refused_in_seconds_if_the_hub_does_not_answer(silent_hub, in_tmp_path):
    (in_tmp_path / "mymodel").mkdir()
    register()  # its imports are not part of the answer
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


FILES = {"README.md": b"", "tiny-Q4_K_M.gguf": b"GGUF", "tiny-f16.gguf": b"GGUF"}


def test_a_model_on_the_hub_that_has_gguf_files_only_is_refused_with_their_names(silent_hub, in_tmp_path, monkeypatch):
    with LocalHub({}) as there:
        there.make_repository("ann/tiny-GGUF", private=False, files=FILES)
        there.make_repository("ann/both", private=False, files={**FILES, "config.json": b"{}"})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there.url)
        template = there.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        for ask in (look_at_model, read_config):
            with pytest.raises(UserError) as caught:
                pytest.fail(f"it was not refused: {ask('ann/tiny-GGUF', key='model.checkpoint')}")
            text = str(caught.value)
            assert "it has GGUF files only: tiny-Q4_K_M.gguf, tiny-f16.gguf" in text
            assert "hf download ann/tiny-GGUF tiny-Q4_K_M.gguf --local-dir ." in text
        assert look_at_model("ann/both", key="model.checkpoint") is None


def test_a_gguf_file_given_by_its_path_on_the_hub_is_refused_with_the_command_that_downloads_it(in_tmp_path):
    name = "ann/tiny-GGUF/tiny-f16.gguf"
    for ask in (
        lambda: check({"stage": "sft", "model": name, "data": [{"path": "builtin:sums"}]}),
        lambda: find_model(name),
    ):
        with pytest.raises(UserError, match=r"hf download ann/tiny-GGUF tiny-f16.gguf --local-dir \."):
            ask()


def test_a_check_says_that_a_model_was_not_checked(silent_hub, in_tmp_path):
    (in_tmp_path / "mymodel").mkdir()
    remark = look_at_model("mymodl/x", key="model.checkpoint")
    assert remark is not None
    assert "was not checked: the Hub can't be reached. Did you mean mymodel?" in remark
    (in_tmp_path / "checkpoints/fifty/model").mkdir(parents=True)
    assert near_folder("fity") == "Did you mean checkpoints/fifty?"
    assert near_folder("ann/fity") is None
    assert near_folder("something else entirely") is None
    with pytest.raises(UserError, match="Repo id must use"):
        look_at_model("[red]x[/]", key="model.checkpoint")
