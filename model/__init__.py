"""The bundled inference model of the DeepSeek-V2/V3 family."""

from .config import ModelConfig
from .llm import LLM
from .outputs import Output, Piece
from .sampler import SamplingParams
from .tokenizer import Tokenizer

__all__ = ["LLM", "ModelConfig", "Output", "Piece", "SamplingParams", "Tokenizer"]
