"""llama.cpp's own HTTP server on a tiny random model, which is made here. Prints its port."""

import sys
import tempfile
import threading

import gguf
import numpy
import xllamacpp

WIDTH, INNER, HEADS = 32, 64, 2


def make(path):
    writer = gguf.GGUFWriter(path, "llama")
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_context_length(65536)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [6] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = numpy.random.default_rng(7)

    def tensor(name, *shape):
        values = random.standard_normal(shape) * 0.5 if len(shape) > 1 else numpy.ones(shape)
        writer.add_tensor(name + ".weight", values.astype(numpy.float32))

    tensor("token_embd", len(words), WIDTH)
    tensor("output_norm", WIDTH)
    tensor("output", len(words), WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensor("blk.0." + name, WIDTH, WIDTH)
    for name in ("ffn_gate", "ffn_up"):
        tensor("blk.0." + name, INNER, WIDTH)
    tensor("blk.0.ffn_down", WIDTH, INNER)
    for name in ("attn_norm", "ffn_norm"):
        tensor("blk.0." + name, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


with tempfile.TemporaryDirectory() as folder:
    made = folder + "/tiny.gguf"
    make(made)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = made
    parameters.model_alias = {"tiny"}
    parameters.port = 0
    parameters.n_ctx = 65536
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.endpoint_slots = True
    parameters.n_threads_http = 8
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    server = xllamacpp.Server(parameters)
    print(server.listening_address.rsplit(":", 1)[1], flush=True)
    threading.Event().wait()
