from .config import FinetuneConfig as FinetuneConfig
from .job import JOB as JOB
