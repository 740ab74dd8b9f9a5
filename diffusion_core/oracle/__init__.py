r"""Mixtures of Gaussians, whose denoiser, score, classifier and likelihood are known exactly.

With components pi_k N(mu_k, s_k^2 I) and v_k = alpha_bar s_k^2 + 1 - alpha_bar, noisy data has the density
sum_k pi_k N(x_t; sqrt(alpha_bar) mu_k, v_k I); with r_k the share of component k in it,

    x0  = sum_k r_k (mu_k + sqrt(alpha_bar) s_k^2 / v_k (x_t - sqrt(alpha_bar) mu_k))
    eps = sum_k r_k sqrt(1 - alpha_bar) / v_k (x_t - sqrt(alpha_bar) mu_k) = -sqrt(1 - alpha_bar) score

Components belong to classes, so the conditional model and the noisy classifier are exact as well. A sampler or a
guidance rule can be tested on them with no training; `python -m diffusion_core.oracle` does so and draws a picture.
"""

from diffusion_core.oracle.denoiser import OracleDenoiser, energy_distance
from diffusion_core.oracle.mixture import GaussianMixture

__all__ = ["GaussianMixture", "OracleDenoiser", "energy_distance"]
