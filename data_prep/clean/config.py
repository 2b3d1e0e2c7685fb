from dataclasses import dataclass
@dataclass
class CleanConfig:
    keep_dropped: bool = False
    is_active = False
