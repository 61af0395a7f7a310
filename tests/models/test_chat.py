"""Chat templates and the tokens around messages, on tokenizers of a few words."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.models.chat import CHATML, complete_template, control_texts, render_chat, turn_end
from mth.models.tokenizer import load_tokenizer, stop_ids

LLAMA_DATE = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today Date: {{ date_string }}\n{% for m in messages %}{{ m.content }}{% endfor %}"
)
TURNS = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"


def small_tokenizer(added=(), unknown="<unk>", first=None, template=None, **options):
    """A tokenizer of characters. added: AddedTokens. first: token that it puts before a text."""
    vocabulary = {token: i for i, token in enumerate([unknown, "<s>", "</s>", *map(chr, range(32, 127)), "\n", "▁"])}
    rust = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    rust.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    rust.add_special_tokens([unknown, "<s>", "</s>"])
    rust.add_tokens([token for token in added if not token.special])
    rust.add_special_tokens([token for token in added if token.special])
    if first is not None:
        rust.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, rust.token_to_id(first))])
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token=unknown, chat_template=template, **options)


def special(*texts, is_special=True):
    return [AddedToken(text, special=is_special, normalized=False) for text in texts]


def model_with_end(token):
    config = SimpleNamespace(eos_token_id=token)
    return SimpleNamespace(config=config, generation_config=config)


@pytest.mark.parametrize("is_special", [True, False])
def test_the_token_that_the_template_writes_after_a_reply_ends_it(is_special):
    tokenizer = small_tokenizer(special("<|start|>", "<|eot|>", is_special=is_special), template=TURNS, eos_token="</s>")
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|eot|>")
    assert stop_ids(model_with_end(2), tokenizer) == {2, tokenizer.convert_tokens_to_ids("<|eot|>")}
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
    assert turn_end(tokenizer) == 2
    for template in (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}.\n{% endfor %}",  # nothing of its own after a reply
        "{{ messages[0].content }}",  # no place for replies
        "{% if messages[-1].role != 'user' %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}",
    ):
        tokenizer.chat_template = template
        assert turn_end(tokenizer) is None


def test_end_of_text_stops_where_it_is_the_unknown_token_too():
    tokenizer = small_tokenizer(unknown="<|endoftext|>", template=CHATML)
    assert stop_ids(model_with_end(2), tokenizer) == {0, 2}
    assert stop_ids(model_with_end(2), small_tokenizer(template=CHATML)) == {2}  # neither <|im_end|> nor <|endoftext|>: both are unknown


def test_without_a_template_the_begin_of_text_token_is_kept(capsys):
    tokenizer = small_tokenizer(first="<s>", bos_token="<s>")
    complete_template(tokenizer, "some/folder")
    assert render_chat(tokenizer, [{"role": "user", "content": "hi"}]) == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    said = capsys.readouterr().err
    assert said == "warning: model.tokenizer=some/folder has no chat template; prompts are written as ChatML, behind <s>\n"
    for tokenizer in (small_tokenizer(bos_token="<s>"), small_tokenizer(first="</s>", bos_token="<s>")):  # GPT-2 names one and adds none
        complete_template(tokenizer, "some/folder")
        assert tokenizer.chat_template == CHATML
        assert capsys.readouterr().err.endswith("as ChatML\n")


def test_loaded_tokenizers_have_a_template_that_works(tmp_path, capsys):
    small_tokenizer(first="<s>", bos_token="<s>").save_pretrained(tmp_path / "none")
    loaded = load_tokenizer(ModelConfig(tokenizer=str(tmp_path / "none")))
    assert loaded.chat_template.startswith("{{ bos_token }}")
    assert capsys.readouterr().err.count("ChatML") == 1
    for name, template in (("broken", "{% for m in messages %}"), ("drops", "{{ messages[0].role }}"), ("fails", "{{ 1 / 0 }}")):
        small_tokenizer(template=template).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=r"^model.tokenizer: the chat template (fails|drops)") as caught:
            load_tokenizer(ModelConfig(tokenizer=str(tmp_path / name)))
        assert "\n" not in str(caught.value)
    capsys.readouterr()
    assert load_tokenizer(ModelConfig()).chat_template == CHATML  # the embedded one has its own
    assert not capsys.readouterr().err


def test_a_template_reads_the_same_date_on_every_day():
    tokenizer = small_tokenizer(template=LLAMA_DATE)
    assert render_chat(tokenizer, [{"role": "user", "content": "hi"}]) == "Today Date: 26 Jul 2024\nhi"


def test_control_texts_are_special_tokens_and_brackets_of_the_template():
    added = [*special("<|start|>", "<|eot|>", "user", "<think>", is_special=False), *special("<|pad|>")]
    assert control_texts(small_tokenizer(added, template=TURNS)) == ["<|start|>", "<|eot|>", "<|pad|>", "<unk>", "</s>", "<s>"]
