"""What a model reads: conversations rendered by a chat template, and the faults of templates.

Training, probes and evaluation render here, so that what is learned, measured and asked for is the
same text; the date that a template writes is a stated one.
"""

from mlflow_scalpel.chat.checks import (
    Checked,
    check_answered,
    check_prompt,
    check_system_prompt,
    settled,
)
from mlflow_scalpel.chat.dates import DEFAULT_DATE
from mlflow_scalpel.chat.files import (
    context_of,
    end_tokens,
    load_tokenizer,
    stored_eos,
    stored_template,
    template_of,
    with_chat,
)
from mlflow_scalpel.chat.rendering import (
    Messages,
    Rendered,
    prompt_opening,
    render,
    render_answered,
)

__all__ = [
    "DEFAULT_DATE",
    "Checked",
    "Messages",
    "Rendered",
    "check_answered",
    "check_prompt",
    "check_system_prompt",
    "context_of",
    "end_tokens",
    "load_tokenizer",
    "prompt_opening",
    "render",
    "render_answered",
    "settled",
    "stored_eos",
    "stored_template",
    "template_of",
    "with_chat",
]
