"""CPU kernels in C, compiled on the machine that runs them; torch does the work where they cannot."""
