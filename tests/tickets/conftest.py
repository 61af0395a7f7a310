"""The real shapes of Qwen2.5."""

import pytest

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.models.shapes import parameter_shapes
from tests import interpreted
from tests.tickets.counts import COUNTS

interpreted_kernels, launched = interpreted.interpreted_kernels, interpreted.launched


@pytest.fixture(scope="package", params=sorted(COUNTS))
def real(request):
    """Name and parameter shapes of a published model."""
    return request.param, parameter_shapes(ModelConfig(name=request.param, path="Qwen/none", init=Init.random))
