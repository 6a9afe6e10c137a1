import pytorch_lightning as pl
class Distillation(pl.Callback):
    def __init__(self,*a,**k): pass
class GammaDashboard(pl.Callback):
    def __init__(self,*a,**k): pass
class SoftPruning(pl.Callback):
    def __init__(self,*a,**k): pass
