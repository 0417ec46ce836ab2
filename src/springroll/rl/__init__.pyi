from .config import RLConfig as RLConfig
from .job import JOB as JOB
