"""Chat templates: what they write around messages, rendered the same on every day."""

import sys
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from mth.foundations.errors import UserError, first_line, require

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a template reads as today. A run that resumes on another day, and the next seed of a grid, must get the same prompts. It is the date
# that the templates of Llama 3 print where they know no other.
TODAY = datetime(2024, 7, 26)
MARK = "\ufdd0"  # stands for a message's content; Unicode reserves it for such uses, so texts do not have it
OTHER_TEMPLATE = "give model.tokenizer=<hub id or folder> with another chat template"


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Return the text of a conversation. Raises UserError, naming the roles, if the template fails."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=TODAY.strftime
        )
    except Exception as error:  # a template is a program of its own, and may fail in any way
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"model.tokenizer: the chat template fails on the roles {roles} ({first_line(error, 160)}); {OTHER_TEMPLATE}"
        ) from error
    return str(text)


def template_fault(tokenizer: PreTrainedTokenizerBase, *roles: str) -> str | None:
    """Return one line that says why the template cannot render messages with these roles; None if all contents appear, in order."""
    contents = [f"{MARK}{index}" for index in range(len(roles))]
    try:
        text = render_chat(tokenizer, [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)])
    except UserError as error:
        return str(error)
    places = [text.find(content) for content in contents]
    if min(places) >= 0 and places == sorted(places):
        return None
    return f"model.tokenizer: the chat template drops or moves a message of the roles {', '.join(roles)}; {OTHER_TEMPLATE}"


def complete_template(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give a tokenizer without a chat template ChatML, behind the begin-of-text token if it puts that before a text; says so in a line.

    Raises UserError if the template can render no user message.
    """
    if tokenizer.chat_template is None:
        starts = begins_texts(tokenizer)
        tokenizer.chat_template = ("{{ bos_token }}" if starts else "") + CHATML
        behind = f", behind {tokenizer.bos_token}" if starts else ""
        print(f"warning: model.tokenizer={source} has no chat template; prompts are written as ChatML{behind}", file=sys.stderr)
    fault = template_fault(tokenizer, "user")
    require(fault is None or template_fault(tokenizer, "system", "user") is None, str(fault))


def begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its begin-of-text token before a text."""
    first, plain = tokenizer("a")["input_ids"][0], tokenizer("a", add_special_tokens=False)["input_ids"][0]
    return bool(first == tokenizer.bos_token_id != plain)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that the template writes after a reply; None if it writes no token of its own there."""
    try:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
        after = render_chat(tokenizer, messages, add_generation_prompt=False).partition(MARK)[2].lstrip()
    except UserError:  # it has no place for replies: good enough for a single turn
        return None
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that become control tokens, longest first: special tokens, and bracketed ones that the template writes around messages.

    Fine-tuned models often have `<|im_start|>` as a token that is not marked as special.
    """
    written = {turn_end(tokenizer)}
    if template_fault(tokenizer, "user") is None:
        around = render_chat(tokenizer, [{"role": "user", "content": MARK}], add_generation_prompt=False).split(MARK)
        written.update(token for text in around for token in tokenizer(text, add_special_tokens=False)["input_ids"])
    added = tokenizer.added_tokens_decoder.items()
    texts = {token.content for index, token in added if token.special or (index in written and token.content[:1] in ("<", "["))}
    return sorted(texts | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
