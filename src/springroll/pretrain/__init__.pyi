from .config import PretrainConfig as PretrainConfig
from .job import JOB as JOB
