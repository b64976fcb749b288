"""The encoder inside a whole network that another library wrote, for ``student.pretrained``."""

from models.weights.conversion import Rule, State, join, next_stage, rename
from models.weights.layouts import find_layout

# What the names of the encoder and of the rest begin with: segmentation_models_pytorch; Hugging Face's UperNet and
# mmsegmentation; torchvision.
WHOLE = (("encoder.", "segmentation_head."), ("backbone.", "decode_head."), ("backbone.", "classifier."))
# timm's networks inside segmentation_models_pytorch ('tu-...'); Hugging Face's ConvNeXt and Swin, as timm names them.
RULES: tuple[Rule, ...] = (
    (r"^model\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.layers\.(\d)\.downsample\.", next_stage("layers.{}.downsample.")),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    (r"^(stages\..*)\.dwconv\.", r"\1.conv_dw."),  # a Mix Transformer has a dwconv of its own
    (r"^(stages\..*)\.layernorm\.", r"\1.norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
)
OUTPUT_NORMS = ("hidden_states_norms.", "swin.layernorm.")  # of Hugging Face's backbones, after the stages


def take_encoder(state: State) -> tuple[State, tuple[str, ...]]:
    """The encoder of a whole network under names that are known alone, and the keys of the rest.

    Tensors of a known layout, and those of an encoder alone, are returned as they are.
    """
    for prefix, head in WHOLE if find_layout(state) is None else ():
        inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if inner and any(key.startswith(head) for key in state):
            inner = {key: tensor for key, tensor in inner.items() if not key.startswith(OUTPUT_NORMS)}
            rest = tuple(key for key in state if key.removeprefix(prefix) not in inner)
            renamed = {rename(key, RULES): tensor for key, tensor in inner.items()}
            return join(renamed, ("query", "key", "value"), "qkv"), rest
    return state, ()
