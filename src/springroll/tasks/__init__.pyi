from .corpus import Corpus as Corpus
from .corpus import load_corpus as load_corpus
from .problem import Problem as Problem
from .problem import TextTask as TextTask
from .problem import Verdict as Verdict
