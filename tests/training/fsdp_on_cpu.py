"""`dllm-kernels` with FSDP2 on CPUs over gloo, as configs/accelerate/fsdp2.yaml has it: 🤗 Accelerate itself takes it for
cards only, so what it decides by the device is said here."""

import accelerate
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import DistributedType

from tests.training.parts import CONFIG

Accelerator = accelerate.Accelerator


class Sharded(Accelerator):
    """An accelerator whose models are sharded."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        chosen = yaml.safe_load((CONFIG.parent / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=chosen["fsdp_version"],
            auto_wrap_policy=chosen["fsdp_auto_wrap_policy"].lower(),
            transformer_cls_names_to_wrap=chosen["fsdp_transformer_layer_cls_to_wrap"].split(","),
            reshard_after_forward=chosen["fsdp_reshard_after_forward"],
            cpu_ram_efficient_loading=chosen["fsdp_cpu_ram_efficient_loading"],
        )
        self.state.distributed_type = DistributedType.FSDP

    def prepare(self, *parts):
        """As Accelerate's, and the parameters are sharded indeed."""
        prepared = super().prepare(*parts)
        assert all(type(p).__name__ == "DTensor" for p in prepared[0].parameters())
        return prepared


if __name__ == "__main__":
    accelerate.Accelerator = Sharded
    from dllm_kernels.cli.main import main

    main()
