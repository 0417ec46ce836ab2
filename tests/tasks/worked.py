"""Problems of generated tasks, with their solutions."""

from springroll.tasks.problem import TextTask, Worked


def worked(task: TextTask, index: int) -> Worked:
    assert task.worked is not None
    return task.worked(index)
