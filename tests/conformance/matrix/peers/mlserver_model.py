"""A model for MLServer that doubles what it gets."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Double(MLModel):
    async def predict(self, payload):
        answer = NumpyCodec.decode_input(payload.inputs[0]) * 2
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[NumpyCodec.encode_output("y", answer)])
