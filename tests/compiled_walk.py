"""`pytest -p tests.compiled_walk`: tests of the walk, run on what `lab.compile` made of it."""

from lab import compiled, paths

CACHE = paths.cache()  # tests have caches of their own

if not compiled.use():
    raise RuntimeError("the walk as it stands is not compiled, or was imported: invoke lab.compile")
