from .config import TrainConfig as TrainConfig
from .job import JOB as JOB
