"""A tokenizer of 101 words for small models: [CLS] 0, [SEP] 1, [PAD] 2, [UNK] 3, then w4 to w100."""

SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def words_tokenizer():
    """The tokenizer as one of transformers; text is its words with a space between them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = list(SPECIAL.values()) + [f"w{i}" for i in range(4, 101)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def save_model(path, seed=0, **changes):
    """A checkpoint folder of a small random model with the tokenizer beside its weights."""
    from dllm_kernels.model.config import LDLMConfig
    from tests.models import randomized

    randomized(LDLMConfig.preset("tiny", **{"seq_len": 13, "vocab_size": 101} | changes), seed=seed).save_pretrained(path)
    words_tokenizer().save_pretrained(path)
    return path


def save_encoder(path):
    """A folder with a small random BERT, whose hidden states are 64 wide, and the tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    BertModel(BertConfig(vocab_size=101, max_position_embeddings=64, pad_token_id=2, **shape)).save_pretrained(path)
    words_tokenizer().save_pretrained(path)
    return path


def small_llama(seed=0):
    """A small random Llama of the tokenizer's words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = LlamaConfig(vocab_size=101, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, **shape)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return LlamaForCausalLM(config).eval()


def save_judge(path, seed=0):
    """A folder with a small random Llama and the tokenizer, whose [CLS] starts a text."""
    small_llama(seed).save_pretrained(path)
    tokenizer = words_tokenizer()
    tokenizer.bos_token = "[CLS]"
    tokenizer.save_pretrained(path)
    return path
