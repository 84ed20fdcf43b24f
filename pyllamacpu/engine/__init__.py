"""A model that runs: steps, the pages of keys and values, and the requests of many who share them.

Steps: engine.py (encoder.py for models that classify, tower.py for images) runs one of step_plans.py over a
batch.py. Pages: pages.py, prefix_cache.py over them, disk_cache.py and page_files.py behind that; images.py
and image_keys.py for what images leave. Requests: scheduler.py (handle.py, admission.py, chunks.py,
cost_model.py); generate.py has the state of an answer; drafts.py, draft_model.py and speculation.py guess
ahead; driver.py lets several threads step; session.py is one sequence that its owner moves. memory.py says
what fits.
"""
