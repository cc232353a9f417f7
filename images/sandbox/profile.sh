# What the freelancer installs for himself goes to his home, which lasts, and is found first. pip, cargo and go put it
# there by themselves; npm and gem are told to.
export NPM_CONFIG_PREFIX="${NPM_CONFIG_PREFIX:-$HOME/.npm-global}"
export GEM_HOME="${GEM_HOME:-$HOME/.gem}"
case ":$PATH:" in
  *":$HOME/.local/bin:$HOME/.npm-global/bin:$HOME/.cargo/bin:$HOME/go/bin:$HOME/.gem/bin:"*) ;;
  *) export PATH="$HOME/.local/bin:$HOME/.npm-global/bin:$HOME/.cargo/bin:$HOME/go/bin:$HOME/.gem/bin:$PATH" ;;
esac
