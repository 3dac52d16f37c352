"""Upper bounds on S, to pair with the lower bound that a witness gives.

certificate        the bound for any norm with a quadratic envelope
burer_monteiro     the low-rank factorisation that finds a good form P
eigenvalue_bound   λ_max of P⁻¹H from above, by Lanczos from a Gaussian start
form_mixture       P improved by mixing forms whose bounds are known
bracket            witness and certificate within one budget of products
"""
