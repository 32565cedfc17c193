// What encoding needs besides the vocabulary: memory that one call at a time writes to.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "tokenizer/linear_bpe.hpp"
#include "tokenizer/piece_cache.hpp"

namespace qwenvl {

struct Workspace {
    PieceCache cache;
    LinearBpe::OpenPlaces open;
};

// Workspaces stay with their tokenizer, so that the next call on any thread finds one warm. There are as many as there
// were calls at a time.
class WorkspacePool {
public:
    class Lease {
    public:
        explicit Lease(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
        ~Lease() { pool_.put(std::move(workspace_)); }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        Workspace& operator*() const { return *workspace_; }

    private:
        WorkspacePool& pool_;
        std::unique_ptr<Workspace> workspace_;
    };

private:
    std::unique_ptr<Workspace> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) {
            free_.reserve(++made_);  // room for its return, which must not throw
            return std::make_unique<Workspace>();
        }
        std::unique_ptr<Workspace> workspace = std::move(free_.back());
        free_.pop_back();
        return workspace;
    }

    void put(std::unique_ptr<Workspace> workspace) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(std::move(workspace));
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<Workspace>> free_;
    std::size_t made_ = 0;
};

}  // namespace qwenvl
