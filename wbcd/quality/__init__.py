"""Quality: each measured value beside its limit, for accepted and refused acquisitions alike.

Pure numpy, no arrays kept. Every code, its meaning and what to do: docs/reference/checks.md.
"""

from wbcd.quality.background import background_ri, settle_medium
from wbcd.quality.cellular import judge_cell
from wbcd.quality.optical import judge_fields, judge_fringes, judge_tomogram

__all__ = ["background_ri", "judge_cell", "judge_fields", "judge_fringes", "judge_tomogram", "settle_medium"]
