"""Whether llama-cpp-python is installed."""

import importlib.util

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
NO_LLAMA_CPP = "llama-cpp-python is not installed: what llama.cpp makes of GGUF files is not tested here"
