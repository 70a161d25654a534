"""On what the metrics of tokens are measured, in words that stand in their descriptions.

The first line of each is short, for lists.
"""

_RENDERED = """
Template: each problem and solution is rendered as [user, assistant] by the base tokenizer's chat
template, one token of beginning at most, the same for base and checkpoints. System prompt: that
of the run's recipe while training, of --system-prompt in `compare`, none otherwise. The digests
of texts (with the system prompt) and of the template stand in the column `texts`."""

_EXACT = """
Dtype: forward passes in float32 unless --dtype says otherwise (column `dtype`); logits always in
float32, formed of the final hidden states and the output embedding in float32; terms in float32,
their sums over the vocabulary in float64."""

ALL = f"""All positions of the text.

Positions: all T tokens of the rendered text, those of template, system prompt and problem too;
each counts with the distribution of what follows it, that after the last token included.
{_RENDERED}
{_EXACT}"""

ANSWER = f"""Positions of the answer.

Positions: those that predict the tokens of the assistant's content and the end-of-turn token
after it; template, system prompt and problem are read, and not counted.
{_RENDERED}
{_EXACT}"""

SAMPLED_ANSWER = f"""Positions of the base's own answer.

Positions: those that predict the tokens of the answer that the base sampled, and its end-of-turn
token where it came to one; the prompt is read, and not counted. Of the texts only the problems are
taken, and the template opens the assistant's turn.
{_RENDERED}
{_EXACT}"""

ALL_BFLOAT16 = f"""All positions of the text, in bfloat16.

Positions: all T tokens of the rendered text, those of template, system prompt and problem too;
each counts with the distribution of what follows it, that after the last token included.
{_RENDERED}

Dtype: everything in bfloat16, whatever --dtype says: weights, forward passes, logits, softmax,
sums and means."""

ROWS = f"""Rows of all positions.

Positions: the attention rows of all T tokens of the rendered text, template and problem too.
{_RENDERED}

Dtype: forward passes in float32 unless --dtype says otherwise (column `dtype`); rows are reduced in
float64."""
