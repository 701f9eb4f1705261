"""Import the released weights of Your Local GAN: arrays=<checkpoint.npz> out=<new folder>; --help tells the rest.

The release (github.com/giannisdaras/ylg, GPL-3.0; a link in its README) is a TensorFlow checkpoint of three files,
model.ckpt-900000.{index,meta,data-...}. TensorFlow is needed once, anywhere, to write its arrays into one file:

    import numpy as np
    import tensorflow as tf

    reader = tf.train.load_checkpoint("model.ckpt-900000")
    names = reader.get_variable_to_shape_map()
    wanted = [name for name in names if name.startswith(("Generator/", "Discriminator/")) and "/Adam" not in name]
    arrays = {name: reader.get_tensor(name) for name in [*wanted, "global_step"]}
    np.savez("checkpoint.npz", **arrays)
    print(len(arrays), "arrays")  # 170: 169 variables and the step

Then `python scripts/import_ylg.py arrays=checkpoint.npz out=ylg_released`, and the folder serves as `run=` of
evaluate.py, scripts/sample.py and scripts/invert.py. A file with everything that the checkpoint holds works as well.
"""

import sys

from saccade.run.import_released import main

if __name__ == "__main__":
    sys.exit(main())
